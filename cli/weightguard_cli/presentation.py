"""What a renderer is told beside the report: which command asked, and for whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from weightguard.catalogue import Severity
from weightguard.finding import Report
from weightguard_cli.account import Account
from weightguard_cli.status import CLEAN, FINDINGS, INCOMPLETE
from weightguard_cli.style import Style
from weightguard_cli.verdict import Scope, Verdict, verdict


@dataclass(frozen=True, slots=True)
class Presentation:
    """How a report is to be told.

    ``task`` is the command, ``fail_on`` the least severity that fails it. ``folder`` is where the
    checkpoint's files lie relative to where the program runs, None when that is elsewhere.
    ``account`` is what the command tells beside findings, where that is more than a report.
    """

    task: str
    scope: Scope
    fail_on: Severity = Severity.ERROR
    folder: PurePosixPath | None = None
    style: Style = field(default_factory=Style)
    account: Account | None = None

    def verdict(self, report: Report) -> Verdict:
        """Return what it all amounts to: the command's own words, or those of the report."""
        return verdict(report, self.scope) if self.account is None else self.account.verdict

    def status(self, report: Report) -> int:
        """Return the exit status that the report amounts to."""
        if not report.complete:
            return INCOMPLETE
        return FINDINGS if report.at_least(self.fail_on) else CLEAN


def folder_below(checkpoint: str, here: Path) -> PurePosixPath | None:
    """Return the folder of a checkpoint's files relative to ``here``, None when it is not below."""
    path = Path(checkpoint)
    folder = path if path.is_dir() else path.parent
    try:
        return PurePosixPath(folder.resolve().relative_to(here.resolve()).as_posix())
    except (ValueError, OSError):
        return None
