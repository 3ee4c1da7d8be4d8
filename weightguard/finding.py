"""Findings and reports: what was observed, where, how bad it is, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import msgspec

from weightguard.catalogue import RULES, Severity, SeverityLabel
from weightguard.ranges import TensorRange
from weightguard.salient import Salience

Evidence: TypeAlias = dict[str, Any]
"""What a finding rests on, as JSON values; the keys of each rule are on the rule's page."""


class Location(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a finding is: as precise as the evidence allows, None where it does not apply.

    ``offset`` is a byte offset in ``file``; ``block`` a 1 MiB block, ``row`` a residue row and
    ``element`` the full index of one element, all of ``tensor``.
    """

    file: str | None = None
    offset: int | None = None
    tensor: str | None = None
    block: int | None = None
    row: int | None = None
    element: tuple[int, ...] | None = None


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One observed deviation from what a sound checkpoint would show."""

    rule: str
    severity: SeverityLabel
    message: str
    remedy: str
    location: Location = Location()
    evidence: Evidence = {}

    @property
    def level(self) -> Severity:
        """The severity as an ordered value."""
        return Severity[self.severity.upper()]


def finding(  # noqa: PLR0913 - a place is a handful of keywords
    code: str,
    message: str,
    *,
    remedy: str | None = None,
    severity: Severity | None = None,
    evidence: Evidence | None = None,
    file: str | None = None,
    offset: int | None = None,
    tensor: str | None = None,
    block: int | None = None,
    row: int | None = None,
    element: tuple[int, ...] | None = None,
) -> Finding:
    """Return a finding of rule ``code`` with the rule's severity and remedy unless given."""
    rule = RULES[code]
    return Finding(
        rule=code,
        severity=(rule.severity if severity is None else severity).label,
        message=message,
        remedy=rule.remedy if remedy is None else remedy,
        location=Location(file, offset, tensor, block, row, element),
        evidence=evidence or {},
    )


class Coverage(msgspec.Struct, frozen=True):
    """How much of the checkpoint's tensor data was read and checked.

    ``tensors_unread`` of the total are known by name only: they lie in missing shards or are of
    a kind that weightguard does not read. How many bytes they have is unknown; ``bytes_total``
    is without them.
    """

    tensors_checked: int
    tensors_total: int
    bytes_checked: int
    bytes_total: int
    tensors_unread: int = 0


BesideKind: TypeAlias = Literal["variant", "copy", "other", "pickle", "training", "folder"]


class FileBeside(msgspec.Struct, frozen=True):
    """A file beside a checkpoint that is no part of it, and so was not read.

    ``kind`` says why: ``variant`` is the same model in another precision, ``copy`` its weights once
    more for other loaders, ``other`` a weight file of another format, ``training`` a trainer's
    state, ``pickle`` another file that loaders unpickle, ``folder`` a folder with weight files.
    """

    name: str
    kind: BesideKind


class FilesBeside(msgspec.Struct, frozen=True):
    """The files beside a checkpoint that were not read: how many, and the first hundred."""

    count: int = 0
    files: tuple[FileBeside, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """The outcome of an audit or a verification: findings, most severe first, and coverage.

    ``salience`` is what stands out in the weights, where that was asked for. ``complete`` is
    False when the checkpoint could not be read to its end; the findings then say why, and the
    absence of others means nothing. ``not_read`` are files beside the checkpoint that are no part
    of it; nothing is known about them. ``ranges`` are the tensors that were read, in the
    checkpoint's order. ``policy`` is the file of the policy that was applied.
    """

    checkpoint: str
    format: str
    complete: bool
    findings: tuple[Finding, ...]
    coverage: Coverage
    salience: Salience | None = None
    not_read: FilesBeside = FilesBeside()
    ranges: tuple[TensorRange, ...] = ()
    policy: str | None = None
    schema: str = "weightguard-report-v1"

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of ``severity`` or above."""
        return tuple(f for f in self.findings if f.level >= severity)


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings most severe first, then by rule and place; deterministic."""
    return tuple(
        sorted(
            findings,
            key=lambda f: (
                -f.level,
                f.rule,
                f.location.file or "",
                f.location.tensor or "",
                -1 if f.location.offset is None else f.location.offset,
                f.message,
            ),
        )
    )
