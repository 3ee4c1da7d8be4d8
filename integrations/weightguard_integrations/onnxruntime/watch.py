"""The canary between requests: run on a budget, judged bit by bit, followed up at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from weightguard.catalogue import Severity
from weightguard.finding import finding
from weightguard.guard import Guard, forks
from weightguard.guard.incident import CANARY, RUNTIME_EXCEPTION
from weightguard.guard.ledger import Place
from weightguard_integrations.onnxruntime.canary import Feed, Outputs, recorded
from weightguard_integrations.onnxruntime.source import RUNTIME_ERRORS

CHECK_AFTER_EXCEPTION = 60.0
"""Seconds between full checks because runs failed: a client's bad input must not cost more."""

_KERNEL_FAILED = "Non-zero status code returned while running"
_SOUND = "; the weights and the canary are sound, so the input may be to blame"


class CanaryWatch:
    """Runs one session's canary, and tells its guard. Safe to share between threads."""

    def __init__(
        self,
        run: Callable[[Feed], Outputs],
        feeds: Sequence[Feed],
        outputs: tuple[str, ...],
        share: float,
    ):
        """``run`` answers a feed, ``outputs`` are the digests that it should answer.

        ``share`` is the part of the time that runs may take, 0 for none but those asked for.
        """
        self._run, self._feeds, self._outputs, self._share = run, feeds, outputs, share
        self._lock = threading.Lock()
        self._due, self._last_alarm = 0.0, -CHECK_AFTER_EXCEPTION
        self._suspicion: str | None = None
        forks.watch(self)

    def run_if_due(self, guard: Guard) -> None:
        """Follow up a suspicion, and run the canary if the budget allows it by now."""
        suspicion, self._suspicion = self._suspicion, None
        if suspicion is not None:
            self.alarm(guard, suspicion)
        if self._share and time.monotonic() >= self._due:
            self.run(guard)

    def run(self, guard: Guard) -> bool:
        """Run the canary now; return whether its outputs are, bit by bit, those it had.

        Where they are not, all weights are checked at once, and it is run again. True where
        another thread runs it at the moment.
        """
        if not self._lock.acquire(blocking=False):
            return True
        try:
            began = time.monotonic()
            what = self.deviation()
            ended = time.monotonic()
            if self._share:
                self._due = ended + (ended - began) / self._share
            return self._judge(guard, what)
        finally:
            self._lock.release()

    def _judge(self, guard: Guard, what: str | None) -> bool:
        place = Place("session", aspect="canary")
        if what is not None:
            guard.report_incident(place, finding(CANARY, what))
            guard.check()
            what = self.deviation()
        if what is None:
            guard.report_sound(place)
        return what is None

    def deviation(self) -> str | None:
        """Run the canary; return in words how its outputs differ, None where they do not."""
        try:
            answers = recorded(self._run, self._feeds)
        except RUNTIME_ERRORS as error:
            return f"the canary's run failed: {error!s:.300}"
        if answers == self._outputs:
            return None
        wrong = sum(a != b for a, b in zip(answers, self._outputs, strict=True))
        return f"{wrong} of {len(answers)} runs have other outputs, bit by bit, than at load"

    def suspect(self, error: str) -> None:
        """Have the next run follow up a kernel that failed in a thread of the runtime's own."""
        self._suspicion = error

    def alarm(self, guard: Guard, error: str) -> None:
        """Take a kernel that failed as a sign of damage, unless everything else is sound."""
        if _KERNEL_FAILED not in error:
            return  # the runtime refused the input before it ran anything
        sound = self.run(guard)
        if time.monotonic() - self._last_alarm >= CHECK_AFTER_EXCEPTION:
            self._last_alarm = time.monotonic()
            sound = not guard.check().findings and sound
        message = f"{error:.300}" + (_SOUND if sound else "")
        severity = Severity.INFO if sound else Severity.ERROR
        place = Place("session", aspect="run")
        guard.report_incident(place, finding(RUNTIME_EXCEPTION, message, severity=severity))

    def after_fork(self) -> None:
        """In a forked child: the thread that may have held the lock is not there any more."""
        self._lock = threading.Lock()
