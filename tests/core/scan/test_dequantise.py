"""GGML blocks to numbers: native and NumPy paths against the gguf package, bit by bit."""

from __future__ import annotations

import warnings

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.real_models import smollm2_gguf
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.gguf import parse_gguf
from weightguard.scan import _native
from weightguard.scan import dequantise as module
from weightguard.scan.dequantise import PIECE_BLOCKS, dequantise
from weightguard.tensor import DTYPES

TYPES = [name for name, dtype in DTYPES.items() if dtype.is_quantised]

SCALES_AT = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip
"""Where a block keeps its binary16 numbers."""

HALVES = np.array(
    [
        0x0000, 0x8000,  # zeros
        0x0001, 0x8001, 0x0203, 0x03FF, 0x83FF,  # subnormals
        0x0400, 0x3C00, 0xBC00, 0x2E66, 0x7BFF, 0xFBFF,  # normals, up to the greatest
        0x7C00, 0xFC00,  # infinities
        0x7C01, 0xFC01, 0x7E00, 0xFE00, 0x7FFF,  # NaN, signalling and quiet
    ],
    np.uint16,
)  # fmt: skip


@pytest.fixture(params=["native", "numpy"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(module, "_native", None)
    return str(request.param)


def random_blocks(name: str, count: int, seed: int = 0) -> NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, DTYPES[name].block_bytes), dtype=np.uint8)


def with_scales(name: str, halves: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return random blocks, one for each combination of ``halves`` as scales."""
    places = SCALES_AT[name]
    grid = np.stack(np.meshgrid(*[halves] * len(places)), -1).reshape(-1, len(places))
    blocks = random_blocks(name, len(grid), 1)
    for column, at in enumerate(places):
        blocks[:, at : at + 2] = grid[:, column].astype("<u2").view(np.uint8).reshape(-1, 2)
    return blocks


def expected_bits(name: str, blocks: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return what the gguf package makes of ``blocks``, with one NaN for all."""
    kind = gguf.GGMLQuantizationType[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        values = np.ascontiguousarray(gguf.quants.dequantize(blocks, kind), np.float32).ravel()
    return np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))


def test_every_dequantised_type_is_tested() -> None:
    assert SCALES_AT.keys() == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_random_blocks(name: str, path: str) -> None:
    blocks = random_blocks(name, 2500)
    values = dequantise(name, blocks)
    assert values.dtype == np.float32
    assert values.shape == (2500 * DTYPES[name].block_elements,)
    assert np.array_equal(values.view(np.uint32), expected_bits(name, blocks))


@pytest.mark.parametrize("name", TYPES)
def test_special_scales(name: str, path: str) -> None:
    blocks = with_scales(name, HALVES)
    bits = dequantise(name, blocks).view(np.uint32)
    assert np.array_equal(bits, expected_bits(name, blocks))
    magnitudes = bits & 0x7FFFFFFF
    assert (magnitudes > 0x7F800000).any()
    assert (magnitudes == 0x7F800000).any()


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1"])
def test_every_scale(name: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    blocks = random_blocks(name, len(halves), 2)
    blocks[:, :2] = halves.astype("<u2").view(np.uint8).reshape(-1, 2)
    assert np.array_equal(dequantise(name, blocks).view(np.uint32), expected_bits(name, blocks))


@pytest.mark.parametrize("name", TYPES)
def test_every_byte_at_every_place(name: str) -> None:
    """A byte decodes alike whatever its neighbours, so 256 blocks of one byte see all codes."""
    size = DTYPES[name].block_bytes
    blocks = np.repeat(np.arange(256, dtype=np.uint8), size).reshape(256, size)
    for at in SCALES_AT[name]:
        blocks[:, at : at + 2] = (0x00, 0x3C)
    rolled = np.concatenate([np.roll(blocks, shift, 0) for shift in (0, 1, 128)])
    assert np.array_equal(dequantise(name, rolled).view(np.uint32), expected_bits(name, rolled))


@pytest.mark.parametrize("count", [0, 1, PIECE_BLOCKS - 1, PIECE_BLOCKS, PIECE_BLOCKS + 1])
def test_counts_around_a_piece(count: int, path: str) -> None:
    blocks = random_blocks("Q4_0", count)
    values = dequantise("Q4_0", blocks)
    assert values.shape == (count * 32,)
    if count:
        assert np.array_equal(values.view(np.uint32), expected_bits("Q4_0", blocks))


def test_blocks_need_not_be_contiguous_or_writable(path: str) -> None:
    wide = random_blocks("Q5_1", 64)
    spread = np.zeros((128, 30), np.uint8)
    spread[::2, 3:27] = wide
    view = spread[::2, 3:27]
    view.flags.writeable = False
    assert np.array_equal(
        dequantise("Q5_1", view).view(np.uint32), dequantise("Q5_1", wide).view(np.uint32)
    )


@pytest.mark.parametrize("name", ["F32", "IQ4_NL", "MXFP4", "q4_0", "", "Q4_0\0"])
def test_types_without_values_are_refused(name: str, path: str) -> None:
    with pytest.raises(ValueError, match="no blocks"):
        dequantise(name, np.zeros((1, 18), np.uint8))


@pytest.mark.parametrize(
    "blocks",
    [
        np.zeros((2, 17), np.uint8),
        np.zeros(36, np.uint8),
        np.zeros((1, 2, 18), np.uint8),
        np.zeros((2, 18), np.int8),
    ],
    ids=["size", "flat", "deep", "signed"],
)
def test_other_shapes_are_refused(blocks: NDArray[np.uint8], path: str) -> None:
    with pytest.raises(ValueError, match="18 bytes"):
        dequantise("Q4_0", blocks)


@pytest.mark.parametrize(
    ("name", "shape", "out"),
    [
        ("Q4_0", (2, 18), 63),
        ("Q4_0", (2, 18), 65),
        ("Q4_0", (2, 18), 96),
        ("Q4_0", (2, 17), 64),
        ("IQ1_S", (2, 50), 512),
    ],
)
def test_native_checks_its_arrays(name: str, shape: tuple[int, int], out: int) -> None:
    with pytest.raises(ValueError, match=r"wrong|unknown"):
        _native.dequantise(name, np.zeros(shape, np.uint8), np.zeros(out, np.float32))


def test_native_refuses_arrays_it_would_have_to_copy() -> None:
    blocks, out = np.zeros((2, 18), np.uint8), np.zeros(64, np.float32)
    for bad in (
        (np.zeros((2, 36), np.uint8)[:, ::2], out),
        (blocks, np.zeros(64, np.float64)),
        (blocks, np.zeros(128, np.float32)[::2]),
    ):
        with pytest.raises(TypeError):
            _native.dequantise("Q4_0", *bad)


@pytest.mark.real
def test_real_weights() -> None:
    path = smollm2_gguf()
    file = CheckpointFile(path, path.name)
    tensors = [t for t in parse_gguf(file).tensors if t.dtype.is_quantised][::40]
    assert {t.dtype.name for t in tensors} == {"Q8_0", "Q4_1"}
    for tensor in tensors:
        size = tensor.dtype.block_bytes
        data = tensor.read(0, min(tensor.nbytes, 20_000 * size))
        blocks = np.frombuffer(data, np.uint8).reshape(-1, size)
        bits = dequantise(tensor.dtype.name, blocks).view(np.uint32)
        assert np.array_equal(bits, expected_bits(tensor.dtype.name, blocks))
    file.close()
