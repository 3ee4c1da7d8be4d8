"""Published forms of ternary weights, against the code that made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.integrations.bitnet import pack_weights

from tests.reference import ternary as reference
from weightguard_integrations.ternary import PackedInt8, PackedTernary


def test_hugging_face_packed_weights(rng: np.random.Generator) -> None:
    weight = rng.integers(-1, 2, (24, 33), np.int8)
    packed = pack_weights(torch.from_numpy(weight.copy()).float())
    assert packed.shape == (6, 33)
    for scale, divides in ((0.5, False), (2.0, True)):
        matrix = PackedTernary.from_hugging_face(
            packed, torch.tensor([scale], dtype=torch.bfloat16), scale_divides=divides
        )
        assert (matrix.unpack() == weight).all()
        assert matrix.scales.tolist() == [0.5]


MASKED: list[Callable[[], object]] = [
    lambda: PackedTernary.from_int8(masked((8, 64), np.int8), 0.5),
    lambda: PackedTernary.from_int8(np.ones((8, 64), np.int8), masked((8,), np.float32)),
    lambda: PackedInt8.from_int8(masked((8, 64), np.int8), 0.5),
    lambda: PackedInt8.from_float(masked((8, 64), np.float32)),
    lambda: PackedTernary.from_gguf(masked((2, 66), np.uint8), "TQ2_0"),
    lambda: PackedTernary.from_master(masked((2, 66), np.float32)),
    lambda: PackedTernary.from_hugging_face(masked((2, 66), np.uint8), 1.0, scale_divides=True),
    lambda: PackedTernary.from_hugging_face(
        np.zeros((2, 66), np.uint8), masked((), np.float32), scale_divides=True
    ),
]


def masked(shape: tuple[int, ...], dtype: type[np.generic]) -> np.ma.MaskedArray[Any, Any]:
    made: np.ma.MaskedArray[Any, Any] = np.ma.array(np.ones(shape, dtype), mask=True)
    return made


@pytest.mark.parametrize("pack", MASKED)
def test_masked_values_are_never_packed(pack: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="masked"):
        pack()


def test_int8_weights_of_torch_are_taken_too(rng: np.random.Generator) -> None:
    weight = rng.integers(-1, 2, (8, 64), np.int8)
    assert (PackedTernary.from_int8(torch.from_numpy(weight), 0.5).unpack() == weight).all()
    with pytest.raises(TypeError, match="float32; they must be int8"):
        PackedTernary.from_int8(torch.ones(8, 64), 0.5)


def test_hugging_face_codes_that_are_no_weight() -> None:
    packed = np.full((2, 3), 0b01010101, np.uint8)
    packed[1, 2] |= 0b00110000
    with pytest.raises(ValueError, match=r"weight \[5, 2\] is 3"):
        PackedTernary.from_hugging_face(packed, 1.0, scale_divides=True)
    with pytest.raises(ValueError, match="not zero"):
        PackedTernary.from_hugging_face(np.zeros((2, 3), np.uint8), 0.0, scale_divides=True)
    with pytest.raises(TypeError, match="uint8"):
        PackedTernary.from_hugging_face(np.zeros((2, 3), np.int8), 1.0, scale_divides=True)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "torch"])
def test_master_weights_by_their_mean_magnitude(kind: str, rng: np.random.Generator) -> None:
    values = (rng.standard_normal((40, 64)) * 0.02).astype(ml_dtypes.bfloat16)
    exact = values.astype(np.float32)
    weight = {
        "float32": exact,
        "bfloat16": values,
        "torch": torch.from_numpy(exact).to(torch.bfloat16),
    }[kind]
    matrix = PackedTernary.from_master(weight)
    mean = np.abs(exact).mean(dtype=np.float64)
    assert (matrix.unpack() == np.clip(np.rint(exact / mean), -1, 1)).all()
    assert matrix.scales[0] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_master_weights_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinities"):
        PackedTernary.from_master(np.full((2, 3), value, np.float32))


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_gguf_blocks(kind: str, rng: np.random.Generator) -> None:
    weight = rng.integers(-1, 2, (12, 512), np.int8)
    weight[3] = 0
    weight[5, 256:] = 0
    scales = (2.0 ** rng.integers(-8, 3, 12)).astype(np.float32)
    blocks = quantize(weight * scales[:, None], gguf.GGMLQuantizationType[kind])
    matrix = PackedTernary.from_gguf(blocks, kind)
    assert (matrix.unpack() == weight).all()
    assert (matrix.scales[weight.any(axis=1)] == scales[weight.any(axis=1)]).all()
    blocks[0, -2:] = np.array([0.3], np.float16).view(np.uint8)
    with pytest.raises(ValueError, match="different scales"):
        PackedTernary.from_gguf(blocks, kind)
    blocks[0, -2:] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(ValueError, match="NaN or infinite"):
        PackedTernary.from_gguf(blocks, kind)
    with pytest.raises(ValueError, match="whole"):
        PackedTernary.from_gguf(np.zeros((2, 7), np.uint8), kind)


def test_int8_rows_come_close_to_the_float_weights(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((30, 200), np.float32)
    weight[4] = 0
    matrix = PackedInt8.from_float(weight)
    x = rng.standard_normal((3, 200), np.float32)
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    assert np.abs(matrix.linear(x) - exact).max() < 0.02 * np.abs(exact).max()
    assert (matrix.linear(x)[:, 4] == 0).all()
    assert (matrix.linear(x) == reference.linear(matrix.unpack(), matrix.scales, x)).all()


def without_values() -> list[torch.Tensor]:
    """Tensors that only tell a shape, or whose memory is gone."""
    plain = torch.ones(4, 8)
    with FakeTensorMode():
        fake = torch.ones(4, 8)
    freed = torch.ones(4, 8)
    freed.untyped_storage().resize_(0)
    return [
        torch.ones(4, 8, device="meta"), fake, torch._to_functional_tensor(plain), freed,
        plain.to_sparse(), torch.nn.UninitializedParameter(),
    ]  # fmt: skip


IMPORTS: dict[str, Callable[[Any], object]] = {
    "from_master": PackedTernary.from_master,
    "from_float": PackedInt8.from_float,
    "from_hugging_face": lambda w: PackedTernary.from_hugging_face(w, 1.0, scale_divides=True),
    "weight_scale": lambda s: PackedTernary.from_hugging_face(
        np.full((1, 8), 0x55, np.uint8), s, scale_divides=True
    ),
    "scale": lambda s: PackedTernary.from_int8(np.ones((4, 8), np.int8), s),
}


@pytest.mark.parametrize("name", IMPORTS)
@pytest.mark.parametrize("at", range(6))
def test_tensors_without_values_are_refused(name: str, at: int) -> None:
    words = "^(weight|packed|weight_scale|scale) (is|has|belongs|must)"
    with pytest.raises((TypeError, ValueError), match=words):
        IMPORTS[name](without_values()[at])


@pytest.mark.parametrize(
    "weight", [torch.ones(4, 8, dtype=torch.int8), np.ones((4, 8), np.int8)], ids=["torch", "numpy"]
)
def test_integers_are_no_master_weights(weight: Any) -> None:
    with pytest.raises(TypeError, match="weights are int8; they must be float32"):
        PackedTernary.from_master(weight)


def test_negated_and_strided_tensors_are_read_as_what_they_are(rng: np.random.Generator) -> None:
    weight = torch.from_numpy(rng.standard_normal((8, 12), np.float32))
    for given, same in ((torch._neg_view(weight), -weight), (weight.T, weight.T.contiguous())):
        matrix = PackedTernary.from_master(given)
        assert (matrix.unpack() == PackedTernary.from_master(same).unpack()).all()


def test_packed_bytes_of_another_size_name_both_sizes(rng: np.random.Generator) -> None:
    made = PackedTernary.from_int8(rng.integers(-1, 2, (40, 64), np.int8), 1.0)
    digits, nbytes = made.geometry.digits, made.packed.nbytes
    with pytest.raises(
        ValueError, match=rf"^{nbytes - 1} packed bytes .* take {nbytes}\. Give all"
    ):
        PackedTernary.from_packed(made.packed[:-1], 1.0, (40, 64), digits)
    again = PackedTernary.from_packed(made.packed, 1.0, made.shape, digits)
    assert (again.packed == made.packed).all()
