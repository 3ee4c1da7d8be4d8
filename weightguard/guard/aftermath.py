"""What a full check came to that something suspicious set off, for what is said about that."""

from __future__ import annotations

from dataclasses import dataclass

from weightguard.guard.guard import Guard
from weightguard.guard.incident import CANARY, REPAIRED, RUNTIME_EXCEPTION
from weightguard.units import counted

OF_RUNS = (CANARY, RUNTIME_EXCEPTION)
"""What canaries and runs report: no weights of their own, only that something is wrong."""


@dataclass(frozen=True, slots=True)
class Aftermath:
    """Whether every block was checked, what of it is open, and blocks repaired meanwhile."""

    complete: bool
    open: int
    repaired: int

    @property
    def sound(self) -> bool:
        """Whether every weight holds its baseline by now."""
        return self.complete and not self.open

    def __str__(self) -> str:
        """Return it in words."""
        if not self.complete:
            return "not all weights could be checked"
        if self.open:
            return f"the weights deviate, {counted(self.open, 'finding')} open"
        if self.repaired:
            return f"{counted(self.repaired, 'damaged block')} repaired since, so it may run again"
        return "all weights were checked since, and are sound"


def check_after(guard: Guard) -> Aftermath:
    """Check every block now, because of something that damaged weights may have caused.

    What OF_RUNS says is not counted: it is what led here.
    """
    last = max((incident.number for incident in guard.incidents), default=0)
    report = guard.check()
    others = [f for f in report.findings if f.rule not in OF_RUNS]
    since = (incident for incident in guard.incidents if incident.number > last)
    return Aftermath(report.complete, len(others), sum(i.code == REPAIRED for i in since))
