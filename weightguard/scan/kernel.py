"""The block kernel: residues and range statistics of one block, native or NumPy, same bits.

Semantics: docs/spec/fingerprint-v1.md, sections 4 and 5. The native module picks the best
instruction set of this machine; the environment variable ``WEIGHTGUARD_ISA`` forces another.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightguard.scan import fallback
from weightguard.scan.formats import FORMATS
from weightguard.tensor import DType, RowLayout

try:
    from weightguard.scan import _native
except ImportError:
    _native = None  # type: ignore[assignment]

ISA_VARIABLE = "WEIGHTGUARD_ISA"
NUMPY = "numpy"

DEQUANTISED_SLICE = 1 << 18
"""Scalars dequantised at a time, so that scratch stays near the size of a block."""

PAGE_BYTES = 4096

UIntArray: TypeAlias = NDArray[np.unsignedinteger[Any]]


class Summary(NamedTuple):
    """Counts, extremes and sums of a block's scalars.

    ``min_bits`` and ``max_bits`` are exact bits, None when nothing is finite. ``sum`` and
    ``sumsq`` are the block's binary64 sums as computed: infinite, or NaN from infinities of both
    signs, where they overflow.
    """

    finite: int
    nan: int
    inf: int
    zero: int
    subnormal: int
    min_bits: int | None
    max_bits: int | None
    sum: float
    sumsq: float


class BlockScan(NamedTuple):
    """What one block's bytes contribute to a tensor's fingerprint.

    ``residues``, uint64 of shape (n, 2), are R and S of the block's words in rows
    ``first_word_row`` and following, to be added modulo 2^64; ``magnitudes``, unsigned of shape
    (m,), the greatest magnitude bits in rows ``first_scalar_row`` and following; ``columns``,
    of shape (row_scalars,), the same per column, or None. The arrays are views of the kernel's
    scratch, valid until its next scan.
    """

    residues: NDArray[np.uint64]
    first_word_row: int
    magnitudes: UIntArray
    first_scalar_row: int
    columns: UIntArray | None
    summary: Summary


class BlockKernel:
    """Scans blocks of one tensor; holds reusable scratch, so one for each tensor and thread.

    Takes the instruction set that is active when it is made. ``columns`` asks for column
    maxima.
    """

    def __init__(self, dtype: DType, layout: RowLayout, *, columns: bool = True):
        self._dtype, self._layout = dtype, layout
        self._format = FORMATS[dtype.scalar]
        self._engine = _engine()
        self._code = self._engine.format_code(dtype.scalar)
        self._fused = (
            dtype.block_elements == 1
            and dtype.block_scalars == 1
            and dtype.word_bytes == dtype.block_bytes
        )
        kind = self._format.magnitude_dtype
        self._residues = np.zeros((0, 2), np.uint64)
        self._magnitudes: UIntArray = np.zeros(0, kind)
        self._columns = _column_scratch(layout.row_scalars, kind) if columns else None
        self._count = np.zeros(fallback.MAX_BITS + 1, np.uint64)
        self._sums = np.zeros(2, np.float64)

    def scan(self, data: NDArray[np.uint8], start: int, nbytes: int) -> BlockScan:
        """Scan the block of ``nbytes`` bytes from byte ``start`` of the tensor.

        ``data`` holds canonical bytes from ``start`` on, contiguous; beyond the block, it goes
        on to the end of the last dtype block that starts in it. ``start`` and ``nbytes`` are
        whole words. Raises ValueError when they are not or ``data`` is too short.
        """
        dtype, layout = self._dtype, self._layout
        if start % dtype.word_bytes or nbytes % dtype.word_bytes:
            raise ValueError("start and nbytes must be whole words")
        word_rows = _touched(start, nbytes, layout.row_bytes)
        first_block = -(-start // dtype.block_bytes)
        last_block = -(-(start + nbytes) // dtype.block_bytes)
        skip = first_block * dtype.block_bytes - start
        values = data[skip : last_block * dtype.block_bytes - start]
        if len(values) < (last_block - first_block) * dtype.block_bytes or len(data) < nbytes:
            raise ValueError("data ends before the last dtype block of the range does")
        first = first_block * dtype.block_scalars
        scalars = (last_block - first_block) * dtype.block_scalars
        residues, magnitudes = self._scratch(
            word_rows, _touched(first, scalars, layout.row_scalars)
        )
        if self._fused:
            self._engine.fused(
                self._code, data, start, nbytes, layout.row_bytes, residues,
                magnitudes, self._columns, self._count, self._sums,
            )  # fmt: skip
        else:
            self._engine.residues(data, start, nbytes, layout.row_bytes, dtype.word_bytes, residues)
            self._statistics(values, first, scalars, magnitudes)
        return BlockScan(
            residues,
            start // layout.row_bytes,
            magnitudes,
            first // layout.row_scalars,
            self._columns,
            self._summary(),
        )

    def _scratch(self, word_rows: int, scalar_rows: int) -> tuple[NDArray[np.uint64], UIntArray]:
        if word_rows > len(self._residues):
            self._residues = np.zeros((word_rows, 2), np.uint64)
        if scalar_rows > len(self._magnitudes):
            self._magnitudes = np.zeros(scalar_rows, self._format.magnitude_dtype)
        magnitudes = self._magnitudes[:scalar_rows]
        magnitudes.fill(0)
        if self._columns is not None:
            self._columns.fill(0)
        self._count.fill(0)
        self._sums.fill(0)
        return self._residues[:word_rows], magnitudes

    def _statistics(
        self, values: NDArray[np.uint8], first: int, scalars: int, magnitudes: UIntArray
    ) -> None:
        if not self._dtype.is_quantised:
            self._add(values, first, scalars, magnitudes)
            return
        from weightguard.scan.dequantise import dequantise

        dtype, row = self._dtype, self._layout.row_scalars
        blocks = values.reshape(-1, dtype.block_bytes)
        at = 0
        while at < scalars:
            stop = self._slice_end(first, at, scalars)
            part = blocks[at // dtype.block_scalars : stop // dtype.block_scalars]
            floats = np.ascontiguousarray(dequantise(dtype.name, part), np.float32)
            rows = slice(
                (first + at) // row - first // row, (first + stop - 1) // row - first // row + 1
            )
            self._add(floats.view(np.uint8), first + at, stop - at, magnitudes[rows])
            at = stop

    def _slice_end(self, first: int, at: int, scalars: int) -> int:
        """Return where to cut after ``at``, on a chunk's edge, so that sums stay the same."""
        stop = at + DEQUANTISED_SLICE
        if stop >= scalars:
            return scalars
        row = self._layout.row_scalars
        run = max((first + stop) // row * row - first, 0)
        return stop - (stop - run) % fallback.CHUNK_SCALARS

    def _add(
        self, values: NDArray[np.uint8], first: int, scalars: int, magnitudes: UIntArray
    ) -> None:
        self._engine.statistics(
            self._code, values, first, scalars, self._layout.row_scalars,
            magnitudes, self._columns, self._count, self._sums,
        )  # fmt: skip

    def _summary(self) -> Summary:
        finite, nan, inf, zero, subnormal, low, high = self._count.tolist()
        total, squares = self._sums.tolist()
        return Summary(
            finite, nan, inf, zero, subnormal,
            low if finite else None, high if finite else None, total, squares,
        )  # fmt: skip


def block_residues(
    dtype: DType, layout: RowLayout, data: NDArray[np.uint8], start: int
) -> NDArray[np.uint64]:
    """Return R and S of each row that a tensor's bytes ``data``, from byte ``start`` on, touch.

    Shape (rows touched, 2). Start and length are whole words.
    """
    residues = np.zeros((rows_touched(layout, start, len(data)), 2), np.uint64)
    if len(data):
        _engine().residues(data, start, len(data), layout.row_bytes, dtype.word_bytes, residues)
    return residues


def rows_touched(layout: RowLayout, start: int, nbytes: int) -> int:
    """Return how many rows ``nbytes`` bytes from byte ``start`` on touch."""
    return _touched(start, nbytes, layout.row_bytes)


def _column_scratch(scalars: int, kind: np.dtype[np.unsignedinteger[Any]]) -> UIntArray:
    """Return zeros that start in the middle of a memory page.

    Blocks are read into whole pages; a store into this array must not look like one into the
    bytes read next, or the processor waits for it.
    """
    room = np.zeros(scalars * kind.itemsize + PAGE_BYTES, np.uint8)
    skip = (PAGE_BYTES // 2 - room.ctypes.data) % PAGE_BYTES
    return room[skip : skip + scalars * kind.itemsize].view(kind)


def _touched(start: int, items: int, row_items: int) -> int:
    """Return how many rows ``items`` items from item ``start`` on touch."""
    return (start % row_items + items - 1) // row_items + 1 if items else 0


_selected_numpy = _native is None


def _engine() -> ModuleType:
    return fallback if _selected_numpy or _native is None else _native


def available_isas() -> tuple[str, ...]:
    """Return what ``select_isa`` takes on this machine, slowest first; always has "numpy"."""
    return (NUMPY, *(_native.available_isas() if _native is not None else ()))


def active_isa() -> str:
    """Return the instruction set that new kernels use."""
    return NUMPY if _engine() is fallback else _native.active_isa()


def select_isa(name: str) -> None:
    """Make kernels use one of ``available_isas``; affects the whole process.

    Results do not depend on it, only speed does. Raises ValueError for others.
    """
    global _selected_numpy  # noqa: PLW0603 - a process has one processor
    if name not in available_isas():
        raise ValueError(f"{name!r:.40} is none of {', '.join(available_isas())}")
    if name != NUMPY:
        _native.select_isa(name)
    _selected_numpy = name == NUMPY


if ISA_VARIABLE in os.environ:
    select_isa(os.environ[ISA_VARIABLE])
