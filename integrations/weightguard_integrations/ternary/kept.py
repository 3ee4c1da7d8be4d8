"""Weights in full precision beside a packed matrix, compared with a copy at each use.

They are few, so the comparison is of every bit. A keyed digest tells which of both changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from weightguard.errors import IntegrityError
from weightguard.finding import Coverage
from weightguard.guard.baseline import Key
from weightguard.guard.incident import report
from weightguard_integrations.ternary.incident import (
    Action,
    Alarm,
    kept_finding,
    product_finding,
)
from weightguard_integrations.ternary.matrix import OnFault, PackedMatrix, Verify

KEPT_PARTS = KEPT_INDEX, KEPT_VALUE = "kept_index", "kept_value"


class Weights(NamedTuple):
    """Places [n, 2], int64 row and column, and values [n], float32."""

    places: NDArray[np.int64]
    values: NDArray[np.float32]


class KeptWeights:
    """``index`` (int64 [n, 2]: row, column) and ``value`` (float32 [n]) of kept weights.

    Both are live memory, which a guard covers; ``use`` gives what was kept, or says that it is
    not there any more.
    """

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
        self._key, self._copy = Key(), self._read()
        self._digest = self._key.digest(memoryview(self._copy))

    def __len__(self) -> int:
        return len(self.value)

    @property
    def triples(self) -> list[tuple[int, int, float]]:
        """(row, column, value) of each; raises IntegrityError if one is not as it was."""
        self.use(0, "always", "raise")
        kept = _split(self._copy)
        places = zip(kept.places.tolist(), kept.values.tolist(), strict=True)
        return [(row, column, value) for (row, column), value in places]

    def use(self, tokens: int, verify: Verify, on_fault: OnFault) -> Weights | None:
        """Return the weights for a product of ``tokens``; None if its outputs must be marked.

        The same bytes are compared and returned. Damage is an incident; by ``on_fault`` it is
        repaired from the copy, read again, marked or raised as IntegrityError. Unchecked, only
        places outside the matrix raise ValueError.
        """
        data = self._read()
        if data == self._copy:
            return _split(data)
        if verify == "off":
            weights = _split(data)
            if not _inside(self._matrix, weights.places):
                raise ValueError(f"damaged: {self._matrix.name:.200} keeps weights outside itself")
            return weights
        return self._recover(data, tokens, on_fault)

    def _recover(self, data: bytes, tokens: int, on_fault: OnFault) -> Weights | None:
        if self._key.digest(memoryview(data)) == self._digest:
            self._copy = data  # it is the copy that changed
            return _split(data)
        action: Action = "raised"
        if on_fault == "mark":
            action = "marked"
        elif on_fault == "repair" and self._copy_is_sound():
            kept = _split(self._copy)
            self.index[:], self.value[:] = kept.places, kept.values
            action = "repaired"
        elif on_fault == "recompute" and self._read() == self._copy:
            action = "recomputed"
        matrix = self._matrix
        stored = kept_finding(matrix.name, _changes(_split(self._copy), _split(data)))
        alarms = bytes([Alarm.KEPT]) * tokens
        incidents = matrix.note([product_finding(matrix.name, alarms, [stored], action), stored])
        if action == "raised":
            coverage = Coverage(1, 1, len(data), len(data))
            raise IntegrityError(report(matrix.name, incidents, coverage))
        return None if action == "marked" else _split(self._copy)

    def _copy_is_sound(self) -> bool:
        return self._key.digest(memoryview(self._copy)) == self._digest

    def _read(self) -> bytes:
        return self.index.tobytes() + self.value.tobytes()


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


def _split(data: bytes) -> Weights:
    count = len(data) // 20
    room = bytearray(data)
    index = np.frombuffer(room, np.int64, 2 * count).reshape(count, 2)
    return Weights(index, np.frombuffer(room, np.float32, count, 16 * count))


def _changes(kept: Weights, live: Weights) -> list[tuple[int, int, int]]:
    """Return number, row and column of the kept weights that are not as they were."""
    moved = (kept.places != live.places).any(axis=1)
    changed = moved | (kept.values.view(np.uint32) != live.values.view(np.uint32))
    return [(at, *kept.places[at].tolist()) for at in np.flatnonzero(changed).tolist()]
