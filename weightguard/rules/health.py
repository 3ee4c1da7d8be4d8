"""What the numeric rules look at: one tensor's statistics and the spread of its rows."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class TensorHealth:
    """One tensor's statistics, dead rows, and the octaves of its rows' greatest magnitudes.

    ``row_octaves[k]`` counts rows whose greatest finite magnitude lies in
    [2^(k-1100), 2^(k-1099)); dead rows (nothing but zeros) are in none.
    """

    tensor: TensorView
    statistics: Statistics
    rows: int
    dead_rows: int
    first_dead_rows: tuple[int, ...]
    row_octaves: NDArray[np.int64]

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

    def typical_row(self) -> float | None:
        """Return a magnitude that three quarters of the rows reach, or None for few rows."""
        total = int(self.row_octaves.sum())
        if total < 8:
            return None
        octave = int(np.searchsorted(np.cumsum(self.row_octaves), total / 4))
        return float(2.0 ** (octave - OCTAVE_ZERO))


def octaves(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the histogram of floor(log2 |x|) over the finite values that are not zero."""
    magnitudes = np.abs(values)
    magnitudes = magnitudes[(magnitudes > 0) & np.isfinite(magnitudes)]
    exponents = np.frexp(magnitudes)[1].astype(np.int64) - 1 + OCTAVE_ZERO
    return np.bincount(exponents, minlength=OCTAVES).astype(np.int64)


class HealthObserver:
    """Observes one tensor for the numeric rules and leaves its health in ``healths``."""

    def __init__(self, tensor: TensorView, healths: dict[str, TensorHealth]):
        self._tensor = tensor
        self._healths = healths
        self._format = FORMATS[tensor.dtype.scalar]
        self._octaves = np.zeros(OCTAVES, np.int64)
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
        if self._format.is_float:
            self._octaves += octaves(self._format.decode_array(magnitudes))

    def finished(self, fingerprint: TensorFingerprint) -> None:
        """See TensorObserver."""
        self._healths[self._tensor.name] = TensorHealth(
            self._tensor,
            fingerprint.statistics,
            self._tensor.layout.rows,
            self._dead,
            tuple(self._first_dead),
            self._octaves,
        )
