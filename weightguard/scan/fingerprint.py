"""The fingerprint of one tensor, put together block by block in order."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weightguard.scan.digest import (
    BLOCK_BYTES,
    BLOCK_DIGEST_BYTES,
    DigestAlgorithm,
    block_count,
    tensor_hasher,
)
from weightguard.scan.formats import FORMATS
from weightguard.scan.kernel import BlockScan, Summary
from weightguard.tensor import TensorView

MAX_COLUMNS = 1 << 20
"""Column maxima are kept for rows of at most this many scalars (fingerprint-v1, section 5)."""

FLUSH_ROWS = 4096
MAX_PENDING_EXTREMES = 64
"""Extremes of blocks gathered before they are put in order, which costs more than a set does."""

UIntArray = NDArray[np.unsignedinteger[Any]]


def has_columns(tensor: TensorView) -> bool:
    """Return whether the tensor's fingerprint holds column maxima."""
    layout = tensor.layout
    return layout.rows > 1 and layout.row_scalars <= MAX_COLUMNS


@dataclass(frozen=True, slots=True)
class Statistics:
    """Range statistics over a tensor's scalars; bits are exact, mean and rms binary64.

    ``scalar`` names the format the bits are of; ``min_bits`` and ``max_bits`` are None when no
    scalar is finite. ``mean`` and ``rms`` are 0 then.
    """

    scalar: str
    finite: int
    nan: int
    inf: int
    zero: int
    subnormal: int
    min_bits: int | None
    max_bits: int | None
    absmax_bits: int
    mean: float
    rms: float

    @property
    def total(self) -> int:
        """The number of scalars."""
        return self.finite + self.nan + self.inf

    @property
    def absmax(self) -> float:
        """The greatest finite magnitude as a number."""
        return abs(float(FORMATS[self.scalar].decode(self.absmax_bits)))


@dataclass(frozen=True, slots=True)
class TensorFingerprint:
    """What one pass over a tensor yields, save the rows, which go to observers as they come.

    ``digest`` is None where the pass was asked for none, ``blocks`` uint8 of shape (blocks, 16),
    ``columns`` magnitude bits of shape (row_scalars,) or None.
    """

    tensor: TensorView
    digest: str | None
    blocks: NDArray[np.uint8]
    statistics: Statistics
    columns: UIntArray | None


class TensorObserver(Protocol):
    """Sees one tensor's rows in row order, then its fingerprint; never called concurrently.

    Arrays are only valid during the call.
    """

    def residues(self, first_row: int, residues: NDArray[np.uint64]) -> None:
        """Take residues, shape (n, 2), of rows ``first_row`` and following."""
        ...

    def magnitudes(self, first_row: int, magnitudes: UIntArray) -> None:
        """Take row maxima as magnitude bits, shape (n,), of rows ``first_row`` and following."""
        ...

    def finished(self, fingerprint: TensorFingerprint) -> None:
        """Take the tensor's fingerprint; the last call for this tensor."""
        ...


class _RowStitcher:
    """Joins rows that straddle blocks and hands them on in batches of whole rows."""

    def __init__(
        self,
        like: NDArray[Any],
        rows: int,
        join: Callable[[Any, Any], Any],
        emit: Callable[[int, NDArray[Any]], None],
    ):
        # most tensors have few rows, and then need room for no more
        room = min(len(like) + FLUSH_ROWS + 1, rows)
        self._rows = np.zeros((room, *like.shape[1:]), like.dtype)
        self._join, self._emit = join, emit
        self._first = self._count = 0

    def push(self, first_row: int, rows: NDArray[Any]) -> None:
        if len(rows) and first_row < self._first + self._count:
            last = self._count - 1
            self._rows[last] = self._join(self._rows[last], rows[0])
            rows = rows[1:]
        if self._count + len(rows) > len(self._rows):
            self._flush(keep=1)
        if self._count + len(rows) > len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(rows)])
        self._rows[self._count : self._count + len(rows)] = rows
        self._count += len(rows)
        if self._count > FLUSH_ROWS:
            self._flush(keep=1)

    def close(self) -> None:
        self._flush(keep=0)

    def _flush(self, keep: int) -> None:
        done = self._count - keep
        if done <= 0:
            return
        self._emit(self._first, self._rows[:done])
        self._rows[:keep] = self._rows[done : self._count]
        self._first += done
        self._count = keep


class FingerprintBuilder:
    """Takes a tensor's blocks in order and ends with its fingerprint."""

    def __init__(
        self,
        tensor: TensorView,
        algorithm: DigestAlgorithm | None,
        observers: Sequence[TensorObserver],
    ):
        self.tensor = tensor
        self._algorithm = algorithm
        self._hasher = algorithm and tensor_hasher(algorithm, tensor.dtype.name, tensor.shape)
        self._blocks = np.zeros((block_count(tensor.nbytes), BLOCK_DIGEST_BYTES), np.uint8)
        self._observers = observers
        self._residues: _RowStitcher | None = None
        self._magnitudes: _RowStitcher | None = None
        self._columns: UIntArray | None = None
        self._summaries = _SummaryTotal(tensor.dtype.scalar)

    def add(self, index: int, data: memoryview, digest: bytes, scan: BlockScan) -> None:
        """Take in block ``index``: its bytes, block digest and kernel result."""
        if self._hasher:
            self._hasher.update(data)
        self._blocks[index] = np.frombuffer(digest, np.uint8)
        if self._residues is None or self._magnitudes is None:
            rows = self.tensor.layout.rows
            self._residues = _RowStitcher(scan.residues, rows, np.add, self._emit_residues)
            self._magnitudes = _RowStitcher(
                scan.magnitudes, rows, np.maximum, self._emit_magnitudes
            )
            self._columns = None if scan.columns is None else np.zeros_like(scan.columns)
        self._residues.push(scan.first_word_row, scan.residues)
        self._magnitudes.push(scan.first_scalar_row, scan.magnitudes)
        if self._columns is not None and scan.columns is not None:
            np.maximum(self._columns, scan.columns, out=self._columns)
        self._summaries.add(scan.summary)

    def finish(self) -> TensorFingerprint:
        """Return the fingerprint, after every observer has seen the last rows and it."""
        if self._residues is not None and self._magnitudes is not None:
            self._residues.close()
            self._magnitudes.close()
        result = TensorFingerprint(
            self.tensor,
            f"{self._algorithm}:{self._hasher.hexdigest()}" if self._hasher else None,
            self._blocks,
            self._summaries.statistics(),
            self._columns,
        )
        for observer in self._observers:
            observer.finished(result)
        return result

    def _emit_residues(self, first_row: int, rows: NDArray[np.uint64]) -> None:
        for observer in self._observers:
            observer.residues(first_row, rows)

    def _emit_magnitudes(self, first_row: int, rows: UIntArray) -> None:
        for observer in self._observers:
            observer.magnitudes(first_row, rows)


class _SummaryTotal:
    """Adds up block summaries in block order."""

    def __init__(self, scalar: str):
        self._format = FORMATS[scalar]
        self._finite = self._nan = self._inf = self._zero = self._subnormal = 0
        self._extremes: set[int] = set()
        self._sum = self._sumsq = 0.0

    def add(self, block: Summary) -> None:
        self._finite += block.finite
        self._nan += block.nan
        self._inf += block.inf
        self._zero += block.zero
        self._subnormal += block.subnormal
        if block.min_bits is not None and block.max_bits is not None:
            self._extremes.update((block.min_bits, block.max_bits))
            if len(self._extremes) > MAX_PENDING_EXTREMES:
                self._extremes = {self._least(), self._greatest()}
        self._sum += block.sum
        self._sumsq += block.sumsq

    def _least(self) -> int:
        return min(self._extremes, key=self._format.order_key)

    def _greatest(self) -> int:
        return max(self._extremes, key=self._format.order_key)

    def statistics(self) -> Statistics:
        finite = self._finite
        return Statistics(
            self._format.name,
            finite,
            self._nan,
            self._inf,
            self._zero,
            self._subnormal,
            min_bits=self._least() if self._extremes else None,
            max_bits=self._greatest() if self._extremes else None,
            absmax_bits=max(map(self._format.magnitude, self._extremes), default=0),
            mean=_representable(self._sum) / finite if finite else 0.0,
            rms=math.sqrt(_representable(self._sumsq) / finite) if finite else 0.0,
        )


def _representable(total: float) -> float:
    """Return a sum that JSON can carry: overflow becomes the greatest finite number."""
    if math.isnan(total):
        return 0.0
    return math.copysign(min(abs(total), sys.float_info.max), total)


__all__ = [
    "BLOCK_BYTES",
    "FingerprintBuilder",
    "Statistics",
    "TensorFingerprint",
    "TensorObserver",
    "has_columns",
]
