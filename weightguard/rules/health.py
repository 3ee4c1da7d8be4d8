"""What the numeric rules look at: one tensor's statistics and the spread of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightguard.scan.fingerprint import Statistics, TensorFingerprint, UIntArray
from weightguard.scan.formats import FORMATS
from weightguard.tensor import TensorView

OCTAVES = 2200
"""Binary64 exponents from 2^-1100 to 2^1100, one bin each."""
OCTAVE_ZERO = OCTAVES // 2
MAX_LISTED_ROWS = 16
MIN_TYPICAL_ROWS = 8
"""Rows that are not dead below which none is typical."""


@dataclass(frozen=True, slots=True)
class TensorHealth:
    """One tensor's statistics, its dead rows, and how great its rows are.

    ``typical_row`` is a magnitude that three quarters of the rows that are not dead reach, None
    for few rows. Rows are those of the tensor's layout.
    """

    tensor: TensorView
    statistics: Statistics
    rows: int
    dead_rows: int
    first_dead_rows: tuple[int, ...]
    typical_row: float | None

    @property
    def is_weight_matrix(self) -> bool:
        """Whether the tensor has at least two dimensions larger than one and 64 float values."""
        return (
            self.has_float_values
            and sum(size > 1 for size in self.tensor.shape) >= 2
            and self.tensor.elements >= 64
        )

    @property
    def has_float_values(self) -> bool:
        """Whether statistics are over floats that mean something (not raw blocks, not integers)."""
        return FORMATS[self.statistics.scalar].is_float and not self.tensor.dtype.is_opaque


def octaves(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the histogram of floor(log2 |x|) over the finite values that are not zero."""
    magnitudes = np.abs(values)
    magnitudes = magnitudes[(magnitudes > 0) & np.isfinite(magnitudes)]
    exponents = np.frexp(magnitudes)[1].astype(np.int64) - 1 + OCTAVE_ZERO
    return np.bincount(exponents, minlength=OCTAVES).astype(np.int64)


def _typical(row_octaves: NDArray[np.int64] | None) -> float | None:
    """Return a magnitude that three quarters of the rows reach, given their octaves."""
    total = 0 if row_octaves is None else int(row_octaves.sum())
    if row_octaves is None or total < MIN_TYPICAL_ROWS:
        return None
    octave = int(np.searchsorted(np.cumsum(row_octaves), total / 4))
    return float(2.0 ** (octave - OCTAVE_ZERO))


class HealthObserver:
    """Observes one tensor for the numeric rules and hands its health to ``judge``.

    ``judge`` is called as soon as the tensor was read, so that nothing of it need be kept.
    """

    def __init__(self, tensor: TensorView, judge: Callable[[TensorHealth], None]):
        self._tensor = tensor
        self._judge = judge
        self._format = FORMATS[tensor.dtype.scalar]
        self._octaves: NDArray[np.int64] | None = None
        self._dead = 0
        self._first_dead: list[int] = []

    def residues(self, first_row: int, residues: NDArray[Any]) -> None:
        """See TensorObserver; residues say nothing about health."""

    def magnitudes(self, first_row: int, magnitudes: UIntArray) -> None:
        """See TensorObserver."""
        dead = np.flatnonzero(magnitudes == 0)
        self._dead += len(dead)
        room = MAX_LISTED_ROWS - len(self._first_dead)
        self._first_dead += (first_row + dead[:room]).tolist()
        if self._format.is_float and self._tensor.layout.rows >= MIN_TYPICAL_ROWS:
            found = octaves(self._format.decode_array(magnitudes))
            self._octaves = found if self._octaves is None else self._octaves + found

    def finished(self, fingerprint: TensorFingerprint) -> None:
        """See TensorObserver."""
        self._judge(
            TensorHealth(
                self._tensor,
                fingerprint.statistics,
                self._tensor.layout.rows,
                self._dead,
                tuple(self._first_dead),
                _typical(self._octaves),
            )
        )
