"""Exceptions: something could not be done. A deviation that was observed is a finding instead."""

from __future__ import annotations

from weightguard.catalogue import RULES, Severity
from weightguard.finding import Finding, Report, finding
from weightguard.units import counted


class WeightguardError(Exception):
    """Root of everything weightguard raises on purpose; the message names a remedy."""


class CheckpointError(WeightguardError):
    """The checkpoint cannot be read; carries the one finding that says why.

    ``words`` are said in place of the finding's message.
    """

    def __init__(self, reason: Finding, words: str | None = None):
        super().__init__(reason.message if words is None else words)
        self.finding = reason


class ManifestError(WeightguardError):
    """A manifest or its sidecar cannot be read, or cannot be written."""


class IntegrityError(WeightguardError):
    """Raised only where a policy says raise; carries the whole report."""

    def __init__(self, report: Report, why: str | None = None):
        """``why`` says what the findings, of which there may be none, do not."""
        super().__init__(_told(report) if why is None else f"{why}: {_told(report)}")
        self.report = report


def _told(report: Report) -> str:
    """Return how many findings there are, and the worst of them with its remedy, in a sentence."""
    told = f"{counted(len(report.findings), 'finding')} in {report.checkpoint}"
    if not report.findings:
        return told
    worst = report.findings[0]
    name = worst.location.tensor or worst.location.file
    place = "" if name is None else f" {name!r:.100}"
    return f"{told}: {worst.rule}{place}: {worst.message:.500}. {worst.remedy}"


def malformed(
    code: str,
    message: str,
    *,
    file: str,
    offset: int | None = None,
    tensor: str | None = None,
    remedy: str | None = None,
) -> CheckpointError:
    """Return the error for a checkpoint that cannot be read, to be raised by a parser.

    What ends the reading is an error at least, whatever the rule is elsewhere.
    """
    severity = max(RULES[code].severity, Severity.ERROR)
    return CheckpointError(
        finding(
            code,
            message,
            severity=severity,
            file=file,
            offset=offset,
            tensor=tensor,
            remedy=remedy,
        )
    )
