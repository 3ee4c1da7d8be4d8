"""What is done about incidents: the reactions of a policy, in the order the operator gave.

    log         a structured record of the logger "weightguard.guard"
    metrics     the mismatch counter of the incident's code
    repair      put the damaged block right; what follows in the order knows whether that held
    quarantine  the model leaves service if the incident is open by then
    raise       if the incident is open by then, forward passes raise IntegrityError while it is;
                before repair, the next one does so even if it was healed
    a callable  called with the incident

A reaction that fails is said so (WG912) and stops nothing: not the other reactions, not the
scrubbing, not the server. Logs and callbacks are limited in rate, since a tensor that is
overwritten makes an incident a block; what was held back is counted and said.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeAlias, get_args

import msgspec

from weightguard.catalogue import Severity
from weightguard.errors import WeightguardError
from weightguard.guard.incident import REACTION_FAILED, Incident
from weightguard.guard.metrics import MISMATCHES, Metrics

LOGGER = logging.getLogger("weightguard.guard")

BURST = 32
"""Incidents that are logged and called back about at once."""
PER_SECOND = 1.0
"""Incidents a second that are, on average."""

ReactionName: TypeAlias = Literal["log", "metrics", "repair", "quarantine", "raise"]
Callback: TypeAlias = Callable[[Incident], object]
Reaction: TypeAlias = ReactionName | Callback

_NAMES = get_args(ReactionName)
_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
    Severity.CRITICAL: logging.CRITICAL,
}


class Subject(Protocol):
    """What reactions act on: the guard."""

    def repair(self, incident: Incident) -> None:
        """Repair what the incident is about, as far as it can be."""
        ...

    def is_open(self, incident: Incident) -> bool:
        """Return whether the incident's deviation is open."""
        ...

    def quarantine(self) -> None:
        """Take the model out of service."""
        ...

    def raise_next(self, incident: Incident, *, certainly: bool) -> None:
        """Have forward passes raise while it is open; ``certainly``, the next one even if not."""
        ...

    def reaction_failed(self, name: str, incident: Incident, error: BaseException) -> None:
        """Take note of a reaction that failed."""
        ...


class Limit:
    """Lets ``burst`` through at once, and ``per_second`` on average. For one thread at a time."""

    def __init__(self, burst: int, per_second: float):
        self._burst, self._per_second = burst, per_second
        self._left, self._at = float(burst), 0.0
        self.held_back = 0

    def allows(self, now: float) -> bool:
        """Return whether one more may pass at ``now`` seconds; counts it where not."""
        if self._at:
            refill = max(now - self._at, 0.0) * self._per_second
            self._left = min(self._left + refill, float(self._burst))
        self._at = now
        if self._left < 1:
            self.held_back += 1
            return False
        self._left -= 1
        return True


@dataclass(frozen=True, slots=True)
class _Named:
    name: str
    limited: bool
    act: Callable[[Subject, Incident], object]


class Reactions:
    """The reactions of one guard."""

    def __init__(self, reactions: Iterable[Reaction], metrics: Metrics):
        """Raises WeightguardError for a reaction that does not exist."""
        self._metrics = metrics
        order = list(reactions)
        # who puts it before "repair" wants to hear of what is healed, too
        self._raise_certainly = "raise" in order and "repair" in order[order.index("raise") :]
        self._steps = [self._step(reaction) for reaction in order]
        self._limit = Limit(BURST, PER_SECOND)

    def _step(self, reaction: Reaction) -> _Named:
        if callable(reaction):
            name = getattr(reaction, "__qualname__", type(reaction).__qualname__)
            return _Named(name, True, lambda _, incident: reaction(incident))
        actions: dict[str, _Named] = {
            "log": _Named("log", True, self._log),
            "metrics": _Named("metrics", False, self._count),
            "repair": _Named("repair", False, lambda guard, incident: guard.repair(incident)),
            "quarantine": _Named("quarantine", False, _quarantine),
            "raise": _Named("raise", False, partial(_raise, certainly=self._raise_certainly)),
        }
        if reaction not in actions:
            raise WeightguardError(
                f"{reaction!r:.100} is no reaction: give {', '.join(_NAMES)} or a callable"
            )
        return actions[reaction]

    def run(self, guard: Subject, incident: Incident, now: float) -> None:
        """Run every reaction to ``incident``, in order; never raises an Exception.

        ``sys.exit`` in one ends the process from the main thread; elsewhere it would end nothing
        but the thread that guards, so it is a reaction that failed.
        """
        passed = self._limit.allows(now)
        for step in self._steps:
            if step.limited and not passed:
                continue
            try:
                step.act(guard, incident)
            except BaseException as error:
                if not isinstance(error, Exception) and _in_main_thread():
                    raise
                if incident.code != REACTION_FAILED:  # else it was said, and fails again
                    LOGGER.exception("the reaction %s failed", step.name)
                    guard.reaction_failed(step.name, incident, error)

    def _log(self, guard: Subject, incident: Incident) -> None:
        held_back, self._limit.held_back = self._limit.held_back, 0
        extra = {"weightguard": msgspec.to_builtins(incident)}
        if held_back:
            LOGGER.warning("%d incidents were not logged: too many at once", held_back)
        LOGGER.log(_LEVELS[incident.level], "%s", _line(incident), extra=extra)

    def _count(self, guard: Subject, incident: Incident) -> None:
        if incident.level >= Severity.ERROR:
            self._metrics.add(MISMATCHES, 1, incident.code)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _line(incident: Incident) -> str:
    """Return an incident in one line, without control characters: names are not ours."""
    block = "" if incident.block is None else f" block {incident.block}"
    place = "" if incident.tensor is None else f" {incident.tensor}{block}"
    line = f"{incident.code}{place}: {incident.finding.message}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _quarantine(guard: Subject, incident: Incident) -> None:
    if guard.is_open(incident):
        guard.quarantine()


def _raise(guard: Subject, incident: Incident, *, certainly: bool) -> None:
    if guard.is_open(incident):
        guard.raise_next(incident, certainly=certainly)
