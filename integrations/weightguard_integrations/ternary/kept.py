"""Weights in full precision beside a packed matrix, compared at each use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from weightguard.finding import Finding
from weightguard_integrations.ternary.beside import Compared
from weightguard_integrations.ternary.incident import Alarm, kept_finding
from weightguard_integrations.ternary.matrix import OnFault, PackedMatrix, Verify

KEPT_PARTS = KEPT_INDEX, KEPT_VALUE = "kept_index", "kept_value"


class Weights(NamedTuple):
    """Places [n, 2], int64 row and column, and values [n], float32."""

    places: NDArray[np.int64]
    values: NDArray[np.float32]


class KeptWeights:
    """``index`` (int64 [n, 2]: row, column) and ``value`` (float32 [n]) of kept weights."""

    def __init__(self, matrix: PackedMatrix, kept: Sequence[tuple[int, int, float]]):
        """Keep (row, column, value); raises TypeError and ValueError for what cannot be kept."""
        index = np.array([place for *place, _ in kept])
        if not np.issubdtype(index.dtype, np.integer):
            raise TypeError("places of kept weights are (row, column), whole numbers")
        require_places(matrix, index)
        with np.errstate(over="ignore"):
            value = np.array([value for *_, value in kept], np.float32)
        if not np.isfinite(value).all():
            raise ValueError("kept weights must be finite float32")
        self.index, self.value, self._matrix = index.astype(np.int64), value, matrix
        arrays = self.index.reshape(-1).view(np.uint8), self.value.view(np.uint8)
        tell = partial(_finding, matrix.name)
        self._compared = Compared(matrix, "kept weights", arrays, Alarm.KEPT, tell)

    def __len__(self) -> int:
        return len(self.value)

    @property
    def triples(self) -> list[tuple[int, int, float]]:
        """(row, column, value) of each; raises IntegrityError if one is not as it was."""
        kept = self.use(0, "always", "raise")
        assert kept is not None
        places = zip(kept.places.tolist(), kept.values.tolist(), strict=True)
        return [(row, column, value) for (row, column), value in places]

    def use(self, tokens: int, verify: Verify, on_fault: OnFault) -> Weights | None:
        """Return the weights for a product of ``tokens`` as ``Compared.use`` does its bytes.

        Unchecked, places outside the matrix raise ValueError.
        """
        data = self._compared.use(tokens, verify, on_fault)
        if data is None:
            return None
        weights = _split(data)
        if verify == "off" and not _inside(self._matrix, weights.places):
            raise ValueError(f"damaged: {self._matrix.name:.200} keeps weights outside itself")
        return weights


def require_places(matrix: PackedMatrix, index: NDArray[np.integer]) -> None:
    """Raise ValueError unless places [n, 2] are in the matrix, once each, and packed as 0."""
    if index.ndim != 2 or index.shape[1] != 2:
        raise ValueError("places of kept weights are (row, column)")
    if not _inside(matrix, index) or matrix.unpack()[tuple(index.T)].any():
        raise ValueError("it keeps a weight that it does not have, or that is packed, too")
    if len(np.unique(index, axis=0)) != len(index):
        raise ValueError("it keeps the same weight twice")


def _inside(matrix: PackedMatrix, index: NDArray[np.integer]) -> bool:
    return bool(((index >= 0) & (index < matrix.shape)).all())


def _split(data: bytes | bytearray) -> Weights:
    count = len(data) // 20
    index = np.frombuffer(data, np.int64, 2 * count).reshape(count, 2)
    return Weights(index, np.frombuffer(data, np.float32, count, 16 * count))


def _finding(layer: str, kept: bytes, live: bytes) -> Finding:
    return kept_finding(layer, _changes(_split(kept), _split(live)))


def _changes(kept: Weights, live: Weights) -> list[tuple[int, int, int]]:
    """Return number, row and column of the kept weights that are not as they were."""
    moved = (kept.places != live.places).any(axis=1)
    changed = moved | (kept.values.view(np.uint32) != live.values.view(np.uint32))
    return [(at, *kept.places[at].tolist()) for at in np.flatnonzero(changed).tolist()]
