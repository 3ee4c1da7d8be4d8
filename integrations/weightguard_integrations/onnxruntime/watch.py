"""The canary between requests: run on a budget, judged bit by bit, followed up at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import onnxruntime as ort

from weightguard.catalogue import Severity
from weightguard.finding import finding
from weightguard.guard import Guard, forks
from weightguard.guard.aftermath import Aftermath, check_after
from weightguard.guard.incident import CANARY, CORRUPTION, RUNTIME_EXCEPTION
from weightguard.guard.ledger import Place
from weightguard_integrations.onnxruntime.canary import Feed, Outputs, recorded
from weightguard_integrations.onnxruntime.limit import ended_after
from weightguard_integrations.onnxruntime.source import RUNTIME_ERRORS

TOO_LONG = 30.0
"""A canary that takes this many times as long as it ever did is ended: it may run for ever."""
LEAST_LIMIT = 10.0
"""Seconds that any canary is given."""

CHECK_AFTER_EXCEPTION = 60.0
"""Seconds between full checks because runs failed: a client's bad input must not cost more."""

_KERNEL_FAILED = "Non-zero status code returned while running"


class CanaryWatch:
    """Runs one session's canary, and tells its guard. Safe to share between threads."""

    def __init__(
        self,
        run: Callable[[Feed, ort.RunOptions], Outputs],
        feeds: Sequence[Feed],
        outputs: tuple[str, ...],
        share: float,
    ):
        """``run`` answers a feed under options that may end it; ``outputs`` are the digests of
        what it should answer.

        ``share`` is the part of the time that runs may take, 0 for none but those asked for.
        """
        self._run, self._feeds, self._outputs, self._share = run, feeds, outputs, share
        self._lock = threading.Lock()
        self._due, self._last_alarm = 0.0, -CHECK_AFTER_EXCEPTION
        self._suspicion: str | None = None
        self._longest: float | None = None
        forks.watch(self)

    def run_if_due(self, guard: Guard) -> bool:
        """Follow up a suspicion, and run the canary if the budget allows it by now.

        Returns whether that made an incident. While weights are known to be damaged the canary
        does not run on them.
        """
        suspicion, self._suspicion = self._suspicion, None
        due = bool(self._share) and time.monotonic() >= self._due
        if suspicion is None and not due:
            return False
        last = guard.incidents[-1:]
        if suspicion is not None:
            self.alarm(guard, suspicion)
        if due and not _known_damaged(guard):
            self.run(guard)
        return guard.incidents[-1:] != last

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
        """Run the canary; return in words how its outputs differ, None where they do not.

        A run that takes far longer than the longest so far is ended, and deviates. The first one,
        right after the weights were verified, takes what it takes.
        """
        began, options = time.monotonic(), ort.RunOptions()
        allowed = None if self._longest is None else max(TOO_LONG * self._longest, LEAST_LIMIT)
        try:
            with ended_after(allowed, options):
                answers = recorded(lambda feed: self._run(feed, options), self._feeds)
        except RUNTIME_ERRORS as error:
            if options.terminate:
                return f"the canary ran for more than {allowed:.1f} s and was ended"
            return f"the canary's run failed: {error!s:.300}"
        if answers == self._outputs:
            self._longest = max(self._longest or 0, time.monotonic() - began)
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
        found: Aftermath | None = None
        if time.monotonic() - self._last_alarm >= CHECK_AFTER_EXCEPTION:
            self._last_alarm = time.monotonic()
            found = check_after(guard)
        sound = self.run(guard) and (found is None or found.sound)
        message = f"{error:.300}; {_judged(found, sound)}"
        severity = Severity.INFO if sound else Severity.ERROR
        place = Place("session", aspect="run")
        guard.report_incident(place, finding(RUNTIME_EXCEPTION, message, severity=severity))

    def after_fork(self) -> None:
        """In a forked child: the thread that may have held the lock is not there any more."""
        self._lock = threading.Lock()


def _known_damaged(guard: Guard) -> bool:
    """Return whether a weight deviates that was not put back: no run would tell more."""
    return any(found.rule == CORRUPTION for found in guard.report().findings)


def _judged(found: Aftermath | None, sound: bool) -> str:
    """Return in words what a failed run's follow-up says of weights and canary."""
    if not sound:
        return "the canary fails too" if found is None or found.sound else str(found)
    if found is None:
        return "the canary is sound, and the weights were when they were last checked after a run"
    blame = "" if found.repaired else ", so the input may be to blame"
    return f"{found}; the canary is sound{blame}"
