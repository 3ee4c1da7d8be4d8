"""Answers that no damage touched which was known by the time they leave.

A generation outlives its repair: keys and values that damaged weights computed stay in its cache.
So an answer is computed again where damage was found, or healed, while it was computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from weightguard import IntegrityError, WeightguardError
from weightguard.catalogue import Severity
from weightguard.guard import Guard, State
from weightguard.guard.incident import SENTINEL

T = TypeVar("T")

PAUSE = 0.02
"""Seconds between two looks at a guard that is not healthy."""


def sound_answer(
    guard: Guard, compute: Callable[[], T], *, attempts: int = 3, patience: float = 10.0
) -> T:
    """Return what ``compute`` gives, once the guard was healthy from its start to its end.

    Calls it again where it was not, ``attempts`` (1 or more) times in all, and waits for a repair
    or an update to end, ``patience`` seconds before each. After that, and at once in quarantine,
    raises IntegrityError. A sentinel alone counts for nothing: an unusual prompt would never be
    answered. What ``compute`` raises is passed on. Damage that nobody has found yet is not known
    here either; so a guard that is closed is refused with WeightguardError.
    """
    if guard.closed:
        raise WeightguardError("this guard is closed and watches no answers: make a new one")
    if attempts < 1:
        raise WeightguardError(f"{attempts} attempts make no answer: give 1 or more")
    for _ in range(attempts):
        before = _once_healthy(guard, patience)
        answer = compute()
        if guard.state is State.HEALTHY and _last_damage(guard) == before:
            return answer
    why = f"damage was found or healed during each of {attempts} attempts at an answer"
    raise IntegrityError(guard.report(), why)


def _once_healthy(guard: Guard, patience: float) -> int:
    """Wait until the guard is healthy; return the last damage that it found before."""
    ends = time.monotonic() + patience
    while True:
        before = _last_damage(guard)
        if guard.state is State.HEALTHY:
            return before
        if guard.state is State.QUARANTINED or time.monotonic() >= ends:
            why = "no answers while weights are updated" if guard.state is State.SEALING else None
            raise IntegrityError(guard.report(), why)
        time.sleep(PAUSE)


def _last_damage(guard: Guard) -> int:
    """Return the number of the last incident that calls answers into question, 0 without one."""
    return next(
        (
            incident.number
            for incident in reversed(guard.incidents)
            if incident.level >= Severity.ERROR and incident.code != SENTINEL
        ),
        0,
    )
