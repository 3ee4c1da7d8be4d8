"""Shares: what each of several processes holds of attested rows, verified by all of them together.

Residues add up (fingerprint-v1, section 4): each process takes those of the runs of words that it
holds, with the columns that they have in the whole row, and the sum over the processes is the
manifest's. It proves that no row differs in one or two words; more of them may cancel, as in any
checksum of 128 bits a row. No weight leaves its process, and all of them see the same result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weightguard.errors import WeightguardError
from weightguard.finding import Finding
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.pieces import Piece
from weightguard.locate import RowDelta, delta_column
from weightguard.manifest import Manifest, recorded_view
from weightguard.scan.kernel import block_residues
from weightguard.tensor import RowLayout, TensorView

MAX_LOCATED = 4096
"""Damaged rows that are followed to their processes."""


@dataclass(frozen=True, slots=True)
class Share:
    """Runs of words that a process holds of a record, each within one of its residue rows.

    ``rows``, ``columns`` and ``words``, int64 (n,): row, column of the first word, and length of
    each run. ``residues``, uint64 (n, 2): R and S of each, S with the first word's column as 0.
    """

    record: str
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    words: NDArray[np.int64]
    residues: NDArray[np.uint64]

    def holds(self, row: int, word: int | None) -> bool:
        """Return whether it has a word of a row, or any where that is None."""
        inside = self.rows == row
        if word is not None:
            inside &= (self.columns <= word) & (word < self.columns + self.words)
        return bool(inside.any())


class Ranks(Protocol):
    """The processes that hold a model together; a method is called by all of them at once."""

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        ...

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def add_up(self, array: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the sum of all processes' arrays of one shape, modulo 2^64."""
        ...


@dataclass(frozen=True, slots=True)
class Together:
    """Live tensors, by name, that are verified by all of ``ranks``; each names the same ones."""

    names: frozenset[str]
    ranks: Ranks


@dataclass(frozen=True, slots=True)
class Declared:
    """Of which attested bytes live tensors are made up, and which no process verifies alone.

    ``settled`` are entries, and findings about them, that all came to when they were sealed last.
    """

    pieces: Mapping[str, Sequence[Piece]] = field(default_factory=dict)
    together: Sequence[Together] = ()
    settled: Mapping[str, tuple[TensorBaseline, list[Finding]]] = field(default_factory=dict)

    def settled_as(
        self, entries: Mapping[str, TensorBaseline], findings: Iterable[Finding]
    ) -> Declared:
        """Return what is left to a process that seals again without the others."""
        found = list(findings)
        names = {name for group in self.together for name in group.names} & entries.keys()
        settled = {
            name: (entries[name], [f for f in found if f.location.tensor == name]) for name in names
        }
        return Declared(self.pieces, (), settled)


@dataclass(frozen=True, slots=True)
class ParallelDifference:
    """A row of residues of a record that the ranks together do not hold.

    ``word`` is the only word of the row that can have changed alone, None where several must
    have. ``ranks`` hold that word, or without it a part of the row.
    """

    record: str
    row: int
    word: int | None
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParallelReport:
    """How many rows differ, of which records, the first MAX_LOCATED, and the bytes reduced."""

    rows: int
    records: frozenset[str]
    located: tuple[ParallelDifference, ...]
    reduced_bytes: int


class ShareReading:
    """Takes the bytes of one piece in order and ends with the share of its record."""

    def __init__(self, piece: Piece, view: TensorView):
        """Raise WeightguardError for a piece of which a run crosses from one row into another."""
        row, run = view.layout.row_bytes, piece.stop - piece.start
        whole = not (piece.start % row or run % row or piece.step % row)
        unit = row if whole else run
        starts = piece.start + piece.step * np.arange(piece.runs, dtype=np.int64)
        offsets = (starts[:, None] + unit * np.arange(run // max(unit, 1))).reshape(-1)
        self._rows, within = np.divmod(offsets, row)
        if (within + unit > row).any():
            raise WeightguardError(
                f"bytes {piece.start}:{piece.stop} of {piece.record[:200]!r} cross from one row "
                f"({row} bytes) into another: declare a piece for each row"
            )
        width = view.dtype.word_bytes
        self._record, self._dtype, self._words = piece.record, view.dtype, unit // width
        self._columns = within // width
        self._layout = RowLayout(len(offsets), unit, unit, self._words, unit)
        self._residues = np.zeros((len(offsets), 2), np.uint64)
        self._at = 0

    def update(self, data: NDArray[np.uint8]) -> None:
        """Take in the next bytes."""
        parts = block_residues(self._dtype, self._layout, data, self._at)
        first = self._at // self._layout.row_bytes
        self._residues[first : first + len(parts)] += parts
        self._at += len(data)

    def share(self) -> Share:
        """Return the share, once all bytes were taken in."""
        words = np.full(len(self._rows), self._words, np.int64)
        return Share(self._record, self._rows, self._columns, words, self._residues)


def verify_shares(
    shares: Sequence[Share],
    manifest: Manifest,
    records: Sequence[str],
    ranks: Ranks,
    problem: str | None = None,
) -> ParallelReport:
    """Compare what all ranks hold of ``records`` with the manifest's row residues.

    Every rank names the same records and its own shares. ``problem`` says why this one has none:
    it is told to all in the same reduction, so that no rank waits alone. Raises WeightguardError on
    every rank where any has one, or where the shares do not make up the records exactly once.
    """
    views = {name: recorded(manifest, name) for name in records}
    ends = np.cumsum([0, *(view.layout.rows for view in views.values())]).tolist()
    firsts = dict(zip(records, ends, strict=False))
    total = np.zeros((ends[-1] + 1, 3), np.uint64)
    for share in () if problem else shares:
        _add(total[firsts[share.record] :], share)
    total[-1, 0] = problem is not None
    total = ranks.add_up(total)
    if problem or total[-1, 0]:
        raise WeightguardError(problem or "the slices of another rank do not fit the manifest")
    deltas = _deltas(total, firsts, views, manifest)
    shown = deltas[:MAX_LOCATED]
    holders = np.zeros((len(shown), ranks.count), np.uint64)
    if shown:
        for number, (name, delta) in enumerate(shown):
            word = _word(delta, views[name])
            own = (share for share in shares if share.record == name)
            holders[number, ranks.rank] = any(share.holds(delta.row, word) for share in own)
        holders = ranks.add_up(holders)
    located = tuple(
        ParallelDifference(
            name, delta.row, _word(delta, views[name]), tuple(np.flatnonzero(held).tolist())
        )
        for (name, delta), held in zip(shown, holders, strict=True)
    )
    damaged = frozenset(name for name, _ in deltas)
    return ParallelReport(len(deltas), damaged, located, total.nbytes + holders.nbytes)


def recorded(manifest: Manifest, name: str) -> TensorView:
    """Return an attested tensor's type; raises WeightguardError where there is none."""
    record = manifest.document.tensors.get(name)
    if record is None:
        raise WeightguardError(
            f"no attested tensor is called {name[:200]!r}: give `pieces` of the manifest's records"
        )
    return recorded_view(name, record)


def _add(total: NDArray[np.uint64], share: Share) -> None:
    weighted = share.residues[:, 1] + share.columns.astype(np.uint64) * share.residues[:, 0]
    np.add.at(total[:, 0], share.rows, share.residues[:, 0])
    np.add.at(total[:, 1], share.rows, weighted)
    np.add.at(total[:, 2], share.rows, share.words.astype(np.uint64))


def _deltas(
    total: NDArray[np.uint64],
    firsts: Mapping[str, int],
    views: Mapping[str, TensorView],
    manifest: Manifest,
) -> list[tuple[str, RowDelta]]:
    found = []
    for name, view in views.items():
        observed = total[firsts[name] : firsts[name] + view.layout.rows]
        wrong = np.flatnonzero(observed[:, 2] != view.layout.row_words)
        if len(wrong):
            raise WeightguardError(
                f"the ranks' slices hold {int(observed[wrong[0], 2])} words of row {wrong[0]} of "
                f"{name[:200]!r}, which has {view.layout.row_words}: each part must be given once"
            )
        expected = manifest.sidecar.read(f"{manifest.numbers[name]}/residues")
        changes = observed[:, :2] - expected
        found += [
            (name, RowDelta(int(row), int(changes[row, 0]), int(changes[row, 1])))
            for row in np.flatnonzero(changes.any(axis=1))
        ]
    return found


def _word(delta: RowDelta, view: TensorView) -> int | None:
    column = delta_column(delta)
    return column if column is not None and column < view.layout.row_words else None
