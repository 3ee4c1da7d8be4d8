"""Single rows, elements and crossings of a tensor are those of the whole tensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import Checkpoint, open_checkpoint
from weightguard.scan import values
from weightguard.scan.values import exact_bits, gather, iterate_values, read_grid, read_rows

TENSORS = {
    "bf16": random_tensor("BF16", (70, 96), 1),
    "f16": random_tensor("F16", (70, 96), 2),
    "f32": random_tensor("F32", (70, 96), 3),
    "f64": random_tensor("F64", (70, 96), 4),
    "f8": random_tensor("F8_E5M2", (70, 96), 5),
    "f4": random_tensor("F4", (70, 96), 6),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(write_safetensors(tmp_path / "m.safetensors", TENSORS)) as opened:
        yield opened


@pytest.fixture(params=[0, values.MAX_READ_WHOLE], ids=["piece by piece", "whole"])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(values, "MAX_READ_WHOLE", request.param)
    monkeypatch.setattr(values, "MIN_PIECES", 2)
    return int(request.param)


@pytest.mark.usefixtures("limit")
def test_parts_of_a_tensor_are_those_of_the_whole(checkpoint: Checkpoint) -> None:
    generator = np.random.default_rng(1)
    rows = np.sort(generator.choice(70, 12, replace=False))
    columns = np.sort(generator.choice(96, 9, replace=False))
    elements = generator.choice(70 * 96, 20, replace=False)
    for tensor in checkpoint.tensors:
        whole = np.concatenate([v for _, v in iterate_values(tensor)]).astype(np.float32)
        matrix = whole.reshape(70, 96)
        np.testing.assert_array_equal(read_rows(tensor, rows.tolist()), matrix[rows])
        np.testing.assert_array_equal(
            read_grid(tensor, rows, columns), matrix[np.ix_(rows, columns)]
        )
        np.testing.assert_array_equal(gather(tensor, elements), whole[elements])


def test_exact_bits_are_those_of_the_element(tmp_path: Path) -> None:
    numbers = np.arange(128, dtype=np.float16).reshape(2, 64)
    tensors = {"w": ("F16", (2, 64), numbers.tobytes()), "c": random_tensor("C64", (3,))}
    with open_checkpoint(write_safetensors(tmp_path / "m.safetensors", tensors)) as checkpoint:
        w, c = sorted(checkpoint.tensors, key=lambda t: t.name, reverse=True)
        assert exact_bits(w, w.element((1, 3))) == 0x5430
        with pytest.raises(ValueError, match="no scalar"):
            exact_bits(c, 0)
        for index in ((2, 0), (0, 64), (0,), (0, -1)):
            with pytest.raises(ValueError, match=r"index|outside"):
                w.element(index)


def test_sub_byte_elements_have_bits_of_their_own(checkpoint: Checkpoint) -> None:
    tensor = next(t for t in checkpoint.tensors if t.name == "f4")
    data = TENSORS["f4"][2]
    assert [exact_bits(tensor, n) for n in range(4)] == [
        data[0] & 15, data[0] >> 4, data[1] & 15, data[1] >> 4,
    ]  # fmt: skip
