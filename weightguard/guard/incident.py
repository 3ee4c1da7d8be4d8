"""Incidents: findings at run time, numbered, timed, and linked to what they followed from."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from weightguard.catalogue import Severity
from weightguard.finding import Coverage, Finding, Report, ordered

CORRUPTION = "WG901"
UNDECLARED_UPDATE = "WG902"
DECLARED_UPDATE = "WG903"
ADAPTER_SWAPPED = "WG904"
SENTINEL = "WG905"
CANARY = "WG906"
REPAIRED = "WG907"
UNREPAIRABLE = "WG908"
RUNTIME_EXCEPTION = "WG909"
UNATTESTED = "WG910"
UNREADABLE = "WG911"
REACTION_FAILED = "WG912"
BASELINE_DAMAGED = "WG913"
TENSOR_VANISHED = "WG914"
TENSOR_APPEARED = "WG915"
UNCOVERED = "WG916"

LIVE = "live"
"""The format that a report on a running model names."""


class Incident(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finding at run time.

    ``number`` counts a guard's incidents from 1; ``at`` is seconds since the epoch. ``cause`` is
    the number of the incident that this one answers: what was repaired, or could not be.
    """

    number: int
    at: float
    finding: Finding
    cause: int | None = None

    @property
    def code(self) -> str:
        """The rule's code."""
        return self.finding.rule

    @property
    def level(self) -> Severity:
        """The severity as an ordered value."""
        return self.finding.level

    @property
    def tensor(self) -> str | None:
        """The live tensor it is about, or None."""
        return self.finding.location.tensor

    @property
    def block(self) -> int | None:
        """The 1 MiB block of the tensor it is about, or None."""
        return self.finding.location.block


def report(
    model: str, incidents: Iterable[Incident], coverage: Coverage, *, complete: bool = True
) -> Report:
    """Return the findings of incidents as a report on the running ``model``."""
    return Report(
        checkpoint=model,
        format=LIVE,
        complete=complete,
        findings=ordered(incident.finding for incident in incidents),
        coverage=coverage,
    )
