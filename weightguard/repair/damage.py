"""What is damaged: one pass over the tensors, and which blocks and rows differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weightguard.locate import RowDelta
from weightguard.manifest import Manifest
from weightguard.progress import Meter
from weightguard.scan.fingerprint import TensorFingerprint, UIntArray
from weightguard.scan.stream import scan_tensors
from weightguard.tensor import TensorView

MAX_ROWS = 1 << 18
"""Damaged rows of one tensor that residues are tried on; more than that is no scattered damage."""
MAX_ALL_ROWS = 1 << 22
"""The same for all tensors together: 96 MiB."""


@dataclass(slots=True)
class Damage:
    """One damaged tensor: the numbers of its bad blocks, and the rows whose residues moved."""

    number: int
    blocks: set[int]
    rows: NDArray[np.int64]
    deltas: NDArray[np.uint64]
    healed: dict[str, set[int]] = field(default_factory=dict)
    """By source, the blocks that it restored."""

    def row_deltas(self) -> Iterator[RowDelta]:
        """Yield the rows in order."""
        for row, delta in zip(self.rows.tolist(), self.deltas.tolist(), strict=True):
            yield RowDelta(row, delta[0], delta[1])


class _Budget:
    def __init__(self) -> None:
        self.rows = MAX_ALL_ROWS


class _Watch:
    """Compares one tensor with its record as it is read."""

    def __init__(self, number: int, manifest: Manifest, budget: _Budget, found: dict[int, Damage]):
        self._number, self._manifest = number, manifest
        self._budget, self._found = budget, found
        self._left = MAX_ROWS
        self._rows: list[NDArray[np.int64]] = []
        self._deltas: list[NDArray[np.uint64]] = []

    def residues(self, first_row: int, residues: NDArray[np.uint64]) -> None:
        """See TensorObserver."""
        sidecar = self._manifest.sidecar
        expected = sidecar.read(f"{self._number}/residues", first_row, len(residues))
        damaged = np.flatnonzero((expected != residues).any(axis=1))
        damaged = damaged[: min(self._left, self._budget.rows)]
        if len(damaged):
            self._left -= len(damaged)
            self._budget.rows -= len(damaged)
            self._rows.append(damaged + first_row)
            self._deltas.append(residues[damaged] - expected[damaged])

    def magnitudes(self, first_row: int, magnitudes: UIntArray) -> None:
        """See TensorObserver; nothing is healed by them."""

    def finished(self, fingerprint: TensorFingerprint) -> None:
        """See TensorObserver."""
        name = fingerprint.tensor.name
        if fingerprint.digest == self._manifest.document.tensors[name].digest:
            return
        expected = self._manifest.sidecar.read(f"{self._number}/blocks")
        bad = np.flatnonzero((expected != fingerprint.blocks).any(axis=1))
        self._found[self._number] = Damage(
            self._number,
            set(bad.tolist()),
            np.concatenate([np.empty(0, np.int64), *self._rows]),
            np.concatenate([np.empty((0, 2), np.uint64), *self._deltas]),
        )


def find_damage(
    tensors: Iterable[TensorView],
    manifest: Manifest,
    threads: int | None = None,
    meter: Meter | None = None,
) -> dict[int, Damage]:
    """Return the damaged tensors by number, each with its bad blocks and rows.

    ``tensors`` bear the names, dtypes and shapes of the manifest's records.
    """
    numbers, budget = manifest.numbers, _Budget()
    found: dict[int, Damage] = {}

    def observe(tensor: TensorView) -> Sequence[_Watch]:
        return [_Watch(numbers[tensor.name], manifest, budget, found)]

    algorithm = manifest.document.digest_algorithm
    scan_tensors(tensors, observe, digest=algorithm, threads=threads, meter=meter)
    return found
