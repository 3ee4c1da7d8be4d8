"""What the processes of a model come to about tensors that none of them can verify alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from weightguard.errors import WeightguardError
from weightguard.finding import Finding, finding
from weightguard.guard.adapter import LiveTensor
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.pieces import InTurn
from weightguard.guard.shares import (
    Declared,
    ParallelDifference,
    ParallelReport,
    ShareReading,
    Together,
    recorded,
    verify_shares,
)
from weightguard.manifest import Manifest

MAX_LISTED = 16
"""Rows that one finding lists."""


class Agreement:
    """Gathers this process's shares while it seals, then verifies them with the others.

    A context: where sealing fails here, the others are told instead of left waiting.
    """

    def __init__(self, declared: Declared, manifest: Manifest | None):
        """Without a manifest there is nothing to agree on."""
        self.pieces, self._manifest = declared.pieces, manifest
        self._left = [] if manifest is None else list(declared.together)
        self.names = frozenset(name for group in self._left for name in group.names)
        self._readings: dict[str, list[ShareReading]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, exc: object, _traceback: object) -> None:
        while exc is not None and self._left:
            try:
                self._verify(self._left.pop(0), problem="a tensor could not be sealed")
            except WeightguardError:
                continue  # which is what the others are told; this process raises its own

    def reading(self, tensor: LiveTensor) -> InTurn:
        """Return what takes a tensor's bytes; raises WeightguardError for impossible pieces."""
        assert self._manifest is not None
        pieces = self.pieces[tensor.name]
        views = [recorded(self._manifest, piece.record) for piece in pieces]
        for piece, view in zip(pieces, views, strict=True):
            inside = piece.inside(view.nbytes, view.dtype.block_bytes)
            if view.dtype != tensor.dtype or not inside:
                raise WeightguardError(
                    f"{tensor.name[:200]!r} cannot hold bytes {piece.start}:{piece.stop}, "
                    f"{piece.runs} times {piece.step} apart, of {piece.record[:200]!r}"
                )
        readings = [ShareReading(p, view) for p, view in zip(pieces, views, strict=True)]
        self._readings[tensor.name] = readings
        return InTurn(tensor, pieces, readings)

    def settle(
        self, entries: Iterable[TensorBaseline]
    ) -> tuple[list[TensorBaseline], list[Finding]]:
        """Verify all shares; return the entries with what vouches for them, and WG401 of others.

        Raises WeightguardError on all ranks of a group where their shares do not make up records.
        """
        by_name, findings = {entry.tensor.name: entry for entry in entries}, []
        while self._left:
            group = self._left.pop(0)
            report = self._verify(group)
            for name in sorted(group.names & by_name.keys()):
                entry = by_name[name]
                if report.records.isdisjoint(piece.record for piece in entry.pieces):
                    how = f"a slice; residues of each row summed over {group.ranks.count} ranks"
                    by_name[name] = entry.vouched("transformed", how)
                else:
                    how = "a slice of rows that its ranks do not hold as attested"
                    by_name[name] = entry.vouched("trusted-on-first-use", how)
                    findings.append(self._differs(entry, report.located))
        return list(by_name.values()), findings

    def _verify(self, group: Together, problem: str | None = None) -> ParallelReport:
        assert self._manifest is not None
        records = {p.record for name in group.names for p in self.pieces.get(name, ())}
        shares = [
            reading.share()
            for name in sorted(group.names)
            for reading in self._readings.get(name, ())
        ]
        return verify_shares(shares, self._manifest, sorted(records), group.ranks, problem)

    def _differs(self, entry: TensorBaseline, located: Sequence[ParallelDifference]) -> Finding:
        assert self._manifest is not None
        own = {piece.record for piece in entry.pieces}
        rows = [difference for difference in located if difference.record in own]
        if not rows:  # beyond those that were followed
            message = "rows that several ranks hold are not the attested ones"
            return finding("WG401", message, tensor=entry.tensor.name)
        first = rows[0]
        view = recorded(self._manifest, first.record)
        where, element = f"row {first.row} of {first.record!r:.200}", None
        if first.word is not None:
            words = view.dtype.block_bytes // view.dtype.word_bytes
            element = view.index(first.row * view.layout.row_elements + first.word // words)
            where += f", consistent with element {list(element)}"
        ranks = ", ".join(map(str, first.ranks))
        return finding(
            "WG401",
            f"{where}, which rank {ranks} holds, is not the attested one; {len(rows)} such rows",
            tensor=entry.tensor.name,
            row=first.row,
            element=element,
            evidence={
                "record": first.record,
                "rows": [
                    {"record": d.record, "row": d.row, "word": d.word, "ranks": list(d.ranks)}
                    for d in rows[:MAX_LISTED]
                ],
            },
        )
