"""inject(): exactly the damage that was asked for, in a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import random_tensor, write_safetensors
from tests.damaged import contents, write_model
from weightguard import CheckpointError, WeightguardError
from weightguard.checkpoint.unfinished import JOURNAL
from weightguard.inject import Fault, Flip, Random, Truncate, Zero, inject

TENSORS = {
    "h": random_tensor("BF16", (70, 64), 1),
    "p": random_tensor("F4", (64, 64), 2),
    "s": random_tensor("F6_E2M3", (64, 64), 3),
    "d": random_tensor("F64", (9,), 4),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_safetensors(tmp_path / "m.safetensors", TENSORS)


def differing_bits(a: bytes, b: bytes) -> list[int]:
    difference = np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)
    return np.flatnonzero(np.unpackbits(difference, bitorder="little")).tolist()


@pytest.mark.parametrize(
    ("tensor", "index", "bit", "element", "width"),
    [("h", (3, 5), 14, 3 * 64 + 5, 16), ("p", (1, 3), 2, 67, 4), ("s", (0, 7), 5, 7, 6),
     ("d", (8,), 63, 8, 64)],
)  # fmt: skip
def test_one_flip_is_one_bit(
    model: Path, tmp_path: Path, tensor: str, index: tuple[int, ...], bit: int, element: int,
    width: int,
) -> None:  # fmt: skip
    before = model.read_bytes()
    made = inject(model, tmp_path / "out", [Flip(tensor, index, bit)])
    after = (tmp_path / "out").read_bytes()
    start = before.index(TENSORS[tensor][2])
    assert differing_bits(before, after) == [8 * start + element * width + bit]
    (change,) = made.changes
    assert (change.tensor, change.element, change.bit) == (tensor, index, bit)
    assert after[change.offset] == int(change.after or "", 16)
    assert before[change.offset] == int(change.before or "", 16)
    assert model.read_bytes() == before


def test_random_flips_are_as_many_as_asked_and_the_same_again(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    outputs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        made = inject(model, tmp_path / name, [Random(500, seed)])
        outputs.append((tmp_path / name).read_bytes())
        assert len(made.changes) == 500
        assert len(differing_bits(before, outputs[-1])) == 500
        for change in made.changes[:20]:
            assert change.tensor is not None
            again = tmp_path / f"{name}-{change.offset}-{change.bit}"
            inject(model, again, [Flip(change.tensor, change.element or (), change.bit or 0)])
            flipped = int(change.before or "", 16) ^ int(change.after or "", 16)
            assert again.read_bytes()[change.offset] == before[change.offset] ^ flipped
    assert outputs[0] == outputs[1] != outputs[2]


def test_zeros_and_cuts(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    faults: list[Fault] = [Zero("h"), Zero("d", (2,)), Truncate(30)]
    made = inject(model, tmp_path / "out", faults)
    expected = bytearray(before)
    h, d = (before.index(TENSORS[name][2]) for name in "hd")
    expected[h : h + 70 * 128] = bytes(70 * 128)
    expected[d + 16 : d + 24] = bytes(8)
    assert (tmp_path / "out").read_bytes() == expected[:-30]
    assert [c.nbytes for c in made.changes] == [70 * 128, 8, 30]


def test_two_flips_of_one_byte_add_up(model: Path, tmp_path: Path) -> None:
    inject(model, tmp_path / "out", [Flip("h", (0, 0), 0), Flip("h", (0, 0), 1)])
    assert len(differing_bits(model.read_bytes(), (tmp_path / "out").read_bytes())) == 2
    inject(model, tmp_path / "same", [Flip("h", (0, 0), 0), Flip("h", (0, 0), 0)])
    assert model.read_bytes() == (tmp_path / "same").read_bytes()


def test_a_folder_is_copied_whole(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    before = contents(model)
    inject(model, tmp_path / "out", [Truncate(5, "model-00001-of-00002.safetensors")])
    after = contents(tmp_path / "out")
    assert contents(model) == before
    assert {n for n in before if after[n] != before[n]} == {"model-00001-of-00002.safetensors"}


@pytest.mark.parametrize(
    "fault",
    [
        Flip("none", (0,), 0), Flip("h", (70, 0), 0), Flip("h", (0,), 0), Flip("h", (0, 0), 16),
        Zero("none"), Zero("h", (1,)), Zero("p", (0, 0)), Zero("s", (0, 0)), Truncate(0),
        Truncate(1 << 40), Truncate(1, "none"), Random(1 << 40, 0),
    ],
)  # fmt: skip
def test_what_cannot_be_damaged_is_said_and_nothing_written(
    model: Path, tmp_path: Path, fault: Any
) -> None:
    with pytest.raises(WeightguardError):
        inject(model, tmp_path / "out", [fault])
    assert {p.name for p in tmp_path.iterdir()} == {model.name}


def test_the_original_is_never_the_target(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    for target in (model, model / "copy", model / "sub" / "x", tmp_path):
        with pytest.raises(WeightguardError):
            inject(model, target, [Random(1)])
    with pytest.raises(CheckpointError):
        inject(tmp_path / "nothing", tmp_path / "out", [Random(1)])


def test_a_name_that_is_nearly_a_tensors_is_told_which(tmp_path: Path) -> None:
    tensors = {"layers.0.mlp.weight": random_tensor("F32", (4,)), "norm": TENSORS["d"]}
    model = write_safetensors(tmp_path / "m.safetensors", tensors)
    with pytest.raises(WeightguardError, match=r"; did you mean 'layers\.0\.mlp\.weight'\?"):
        inject(model, tmp_path / "out", [Zero("layer.0.mlp.weight")])
    with pytest.raises(WeightguardError, match=r"one run of a file\. `weightguard inspect`"):
        inject(model, tmp_path / "out", [Zero("zzzz")])


def test_a_folder_of_an_interrupted_repair_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / JOURNAL).write_text("{}")
    with pytest.raises(WeightguardError, match=r"interrupted.*Finish it: weightguard repair"):
        inject(folder, tmp_path / "out", [Random(1)])
    assert not (tmp_path / "out").exists()
