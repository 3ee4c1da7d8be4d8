"""Exceptions: something could not be done. A deviation that was observed is a finding instead."""

from __future__ import annotations

from weightguard.finding import Finding, Report, finding


class WeightguardError(Exception):
    """Root of everything weightguard raises on purpose; the message names a remedy."""


class CheckpointError(WeightguardError):
    """The checkpoint cannot be read; carries the one finding that says why."""

    def __init__(self, reason: Finding):
        super().__init__(reason.message)
        self.finding = reason


class ManifestError(WeightguardError):
    """A manifest or its sidecar cannot be read, or cannot be written."""


class IntegrityError(WeightguardError):
    """Raised only where a policy says raise; carries the whole report."""

    def __init__(self, report: Report):
        super().__init__(f"{len(report.findings)} findings in {report.checkpoint}")
        self.report = report


def malformed(
    code: str,
    message: str,
    *,
    file: str,
    offset: int | None = None,
    tensor: str | None = None,
    remedy: str | None = None,
) -> CheckpointError:
    """Return the error for a checkpoint that cannot be read, to be raised by a parser."""
    return CheckpointError(
        finding(code, message, file=file, offset=offset, tensor=tensor, remedy=remedy)
    )
