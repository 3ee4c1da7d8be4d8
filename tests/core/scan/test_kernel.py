"""The block kernel: every instruction set gives NumPy's bits, and arguments are checked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from weightguard.scan import dequantise, kernel
from weightguard.tensor import DTYPES, DType, RowLayout, row_layout

PROPERTY_DTYPES = (
    "BF16", "F16", "F32", "F64", "C64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E8M0",
    "I8", "U8", "I16", "U32", "I32", "I64", "U64", "F6_E3M2", "F4", "I4", "U2",
)  # fmt: skip
NATIVE = tuple(isa for isa in kernel.available_isas() if isa != kernel.NUMPY)


@pytest.fixture(autouse=True)
def _restored_isa() -> Iterator[None]:
    before = kernel.active_isa()
    yield
    kernel.select_isa(before)


def scan(
    isa: str, dtype: DType, layout: RowLayout, data: NDArray[np.uint8], cuts: list[int]
) -> list[tuple[Any, ...]]:
    """Scan ``data`` in blocks that end at ``cuts``; return copies of all results."""
    kernel.select_isa(isa)
    engine = kernel.BlockKernel(dtype, layout)
    results = []
    start = 0
    for stop in [*cuts, len(data)]:
        ahead = min(len(data), stop + dtype.block_bytes - 1)
        block = engine.scan(data[start:ahead], start, stop - start)
        assert block.columns is not None
        results.append(
            (
                block.first_word_row,
                block.residues.tolist(),
                block.first_scalar_row,
                block.magnitudes.tolist(),
                block.columns.tolist(),
                *(x.hex() if isinstance(x, float) else x for x in block.summary),
            )
        )
        start = stop
    return results


def plain_layout(dtype: DType, row_blocks: int) -> RowLayout:
    row_bytes = row_blocks * dtype.block_bytes
    return RowLayout(
        0, row_blocks * dtype.block_elements, row_bytes, row_bytes // dtype.word_bytes,
        row_blocks * dtype.block_scalars,
    )  # fmt: skip


def floats(kind: str, dtype: DType, data: NDArray[np.uint8]) -> None:
    """Turn random bytes in place into what networks hold, so that fast paths are taken."""
    shifts = {"BF16": (np.uint16, 7, 8), "F16": (np.uint16, 10, 5), "F32": (np.uint32, 23, 8)}
    if kind == "bytes" or dtype.name not in shifts:
        return
    unsigned, mantissa, exponent = shifts[dtype.name]
    bits = data.view(unsigned)
    kept = bits & unsigned(~(((1 << exponent) - 1) << mantissa) & (1 << 8 * bits.itemsize) - 1)
    bias = (1 << (exponent - 1)) - 1
    low = {"weights": bias - 8, "mixed": bias - 8, "tiny": 0, "small": max(bias - 70, 1)}[kind]
    bits[:] = kept | ((bits % unsigned(7) + unsigned(low)) << unsigned(mantissa))
    bits[::13] = 0
    if kind == "mixed":
        bits[::5] = kept[::5] | unsigned(max(bias - 70, 0) << mantissa)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(PROPERTY_DTYPES),
    kind=st.sampled_from(("bytes", "weights", "mixed", "tiny", "small")),
    row_blocks=st.one_of(st.integers(1, 300), st.sampled_from((4095, 4096, 4097, 9000))),
    blocks=st.one_of(st.integers(1, 700), st.integers(8000, 13000)),
    cut=st.integers(0, 13000),
    shift=st.integers(0, 7),
    seed=st.integers(0, 2**32),
)
def test_every_instruction_set_gives_numpys_bits(
    name: str, kind: str, row_blocks: int, blocks: int, cut: int, shift: int, seed: int
) -> None:
    dtype = DTYPES[name]
    data = np.random.default_rng(seed).integers(0, 256, blocks * dtype.block_bytes, np.uint8)
    floats(kind, dtype, data)
    moved = np.zeros(len(data) + shift, np.uint8)[shift:]
    moved[:] = data
    cuts = [min(cut * dtype.word_bytes, len(data))]
    layout = plain_layout(dtype, row_blocks)
    expected = scan(kernel.NUMPY, dtype, layout, data, cuts)
    for isa in NATIVE:
        assert scan(isa, dtype, layout, moved, cuts) == expected, isa


@pytest.mark.parametrize("isa", kernel.available_isas())
@pytest.mark.parametrize("name", ["Q4_0", "Q6_K", "TQ1_0", "IQ4_XS", "Q8_1"])
def test_ggml_blocks_count_where_they_start(
    isa: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, asked = DTYPES[name], []

    def dequantised(kind: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        asked.append((kind, len(blocks)))
        width = dtype.block_elements // 16
        return np.repeat(blocks[:, :16].astype(np.float32) - 100, width, axis=1).ravel()

    monkeypatch.setattr(dequantise, "dequantise", dequantised)
    monkeypatch.setattr(kernel, "DEQUANTISED_SLICE", 10_000)
    shape = (7, 41 * 256)
    layout = row_layout(dtype, shape)
    data = np.random.default_rng(5).integers(0, 256, layout.rows * layout.row_bytes, np.uint8)
    cut = len(data) // 5 * 2 // 4 * 4 + 2
    got = scan(isa, dtype, layout, data, [cut])
    monkeypatch.setattr(kernel, "DEQUANTISED_SLICE", 1 << 30)
    assert got == scan(kernel.NUMPY, dtype, layout, data, [cut])
    finite = sum(result[5] for result in got)
    assert finite == layout.rows * layout.row_scalars
    assert bool(asked) is dtype.is_quantised
    first = -(-cut // dtype.block_bytes) * dtype.block_scalars
    assert got[0][5] == first


@pytest.mark.parametrize("isa", kernel.available_isas())
def test_residues_of_a_row_add_up_from_its_slices(isa: str) -> None:
    dtype = DTYPES["BF16"]
    data = np.random.default_rng(3).integers(0, 256, 20_000, np.uint8)
    layout = row_layout(dtype, (10_000,))
    whole = scan(isa, dtype, layout, data, [])[0][1][0]
    parts = [r[1][0] for r in scan(isa, dtype, layout, data, [2, 130, 8190, 8192, 16386])]
    added = [sum(part[i] for part in parts) % 2**64 for i in range(2)]
    assert added == whole
    words = [int(u) for u in data.view(np.uint16)]
    assert whole == [sum(words) % 2**64, sum(j * u for j, u in enumerate(words)) % 2**64]


@pytest.mark.parametrize("isa", kernel.available_isas())
@pytest.mark.parametrize(("dtype", "ones"), [("U8", 1), ("BF16", 2), ("F32", 4), ("I64", 8)])
def test_residues_of_the_greatest_words_do_not_overflow(isa: str, dtype: str, ones: int) -> None:
    data = np.full(1 << 20, 0xFF, np.uint8)
    form = DTYPES[dtype]
    n = len(data) // form.word_bytes
    got = scan(isa, form, row_layout(form, (len(data) // ones,)), data, [])[0][1][0]
    top = (1 << 8 * form.word_bytes) - 1
    assert got == [n * top % 2**64, top * (n * (n - 1) // 2) % 2**64]


@pytest.mark.parametrize("isa", kernel.available_isas())
def test_values_that_are_not_finite_touch_nothing_but_their_counts(isa: str) -> None:
    values = np.array([1, np.nan, -np.inf, -3, 0, -0.0, 2**-149, np.inf] * 10, np.float32)
    dtype = DTYPES["F32"]
    result = scan(isa, dtype, row_layout(dtype, (80,)), values.view(np.uint8), [])[0]
    finite, nan, inf, zero, subnormal, low, high, total, squares = result[5:]
    assert (finite, nan, inf, zero, subnormal) == (50, 10, 20, 20, 10)
    assert low == np.float32(-3).view(np.uint32)
    assert high == np.float32(1).view(np.uint32)
    assert result[3] == [np.float32(3).view(np.uint32)]
    assert result[4][:8] == [0x3F800000, 0, 0, 0x40400000, 0, 0, 1, 0]
    assert float.fromhex(total) == -20
    assert float.fromhex(squares) == 100


@pytest.mark.parametrize("isa", kernel.available_isas())
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_without_finite_values_has_no_extremes(isa: str, value: float) -> None:
    dtype = DTYPES["F16"]
    data = np.full(70, value, np.float16).view(np.uint8)
    result = scan(isa, dtype, row_layout(dtype, (70,)), data, [])[0]
    assert result[3] == [0]
    assert result[5] == 0
    assert result[10:12] == (None, None)
    assert [float.fromhex(x) for x in result[12:]] == [0, 0]


@pytest.mark.parametrize("isa", kernel.available_isas())
def test_minus_zero_lies_below_zero(isa: str) -> None:
    dtype = DTYPES["BF16"]
    for bits, low, high in (([0x8000], 0x8000, 0x8000), ([0x8000, 0], 0x8000, 0), ([0], 0, 0)):
        data = np.array(bits * 40, np.uint16).view(np.uint8)
        result = scan(isa, dtype, row_layout(dtype, (len(data) // 2,)), data, [])[0]
        assert result[10:12] == (low, high)


@pytest.mark.parametrize("isa", kernel.available_isas())
def test_arrays_too_short_or_ranges_off_the_words_are_refused(isa: str) -> None:
    kernel.select_isa(isa)
    dtype = DTYPES["F32"]
    engine = kernel.BlockKernel(dtype, row_layout(dtype, (100,)))
    data = np.zeros(400, np.uint8)
    with pytest.raises(ValueError, match="ends before"):
        engine.scan(data[:396], 0, 400)
    with pytest.raises(ValueError, match="whole words"):
        engine.scan(data, 2, 8)
    with pytest.raises(ValueError, match="whole words"):
        engine.scan(data, 0, 6)


@pytest.mark.parametrize("isa", kernel.available_isas())
def test_results_live_in_reused_scratch_and_do_not_add_up(isa: str) -> None:
    kernel.select_isa(isa)
    dtype = DTYPES["F16"]
    engine = kernel.BlockKernel(dtype, row_layout(dtype, (64, 128)))
    data = np.random.default_rng(1).standard_normal(8192).astype(np.float16).view(np.uint8)
    first = engine.scan(data, 0, len(data)).summary
    again = engine.scan(data, 0, len(data))
    assert again.summary == first
    assert engine.scan(data, 0, len(data)).residues.base is again.residues.base


def test_columns_are_optional() -> None:
    dtype = DTYPES["F32"]
    engine = kernel.BlockKernel(dtype, row_layout(dtype, (100,)), columns=False)
    assert engine.scan(np.zeros(400, np.uint8), 0, 400).columns is None


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="numpy"):
        kernel.select_isa("mmx")


def test_the_environment_forces_an_instruction_set() -> None:
    code = "from weightguard.scan.kernel import active_isa; print(active_isa())"
    for isa in kernel.available_isas():
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, kernel.ISA_VARIABLE: isa},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ran.stdout.strip() == isa
