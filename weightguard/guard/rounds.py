"""Going round the blocks of a baseline, by budget or all at once, and handing on what is found.

Checks come from three sides (forward passes, a background thread, callers) and never overlap with
a declared update, which puts another scrubber in place. What they find is taken down inside the
gate and reacted to outside of it, so a reaction may call the guard.

A forward pass waits for no device: it judges the sums that an earlier one asked for, and asks for
the next.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from weightguard.finding import Coverage, Report
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.casebook import Casebook
from weightguard.guard.gate import Gate
from weightguard.guard.incident import Incident, report
from weightguard.guard.ledger import Place
from weightguard.guard.metrics import BLOCKS_VERIFIED, LAST_FULL_PASS, SCRUB_BYTES, Metrics
from weightguard.guard.schedule import BlockRef
from weightguard.guard.scrub import Outcome, Scrubber
from weightguard.guard.sweep import Run, grouped

STEPS_AHEAD = 8
"""Forward passes that a large slice of the background thread counts for."""

SURVEY_PERIOD = 5.0
"""Seconds from one look at which tensors there are to the next, where passes take less."""

React = Callable[[Iterable[Incident]], None]


class Rounds:
    """The checks of one guard. Safe to share between threads."""

    def __init__(
        self,
        scrubber: Scrubber,
        gate: Gate,
        casebook: Casebook,
        react: React,
        metrics: Metrics,
        clock: Callable[[], float],
    ):
        self.scrubber, self._gate, self._casebook = scrubber, gate, casebook
        self._react, self._metrics, self._clock = react, metrics, clock
        self.last_full_pass: float | None = None
        self._full_checks = 0
        self._stepping = threading.Lock()
        self._asked: list[Run] = []
        self._pass_ends = False
        self._since_step = 0
        self._surveyed = -math.inf

    @property
    def passes(self) -> int:
        """How often every block was checked: in turn, or all at once."""
        return self.scrubber.position.passes + self._full_checks

    def find(self, place: Place) -> tuple[TensorBaseline, BlockRef] | None:
        """Return what a place's block is held to now, None where the baseline has it not."""
        ref = self.scrubber.schedule.find(place.subject, place.block or 0)
        return None if ref is None else (self.scrubber.baseline.tensors[ref.tensor], ref)

    def report(
        self,
        model: str,
        nbytes: int = 0,
        complete: bool = False,
        *,
        also: Iterable[Incident] = (),
    ) -> Report:
        """Report what is open, and ``also`` incidents that were, after ``nbytes`` were checked."""
        schedule, tensors = self.scrubber.schedule, len(self.scrubber.baseline.tensors)
        coverage = Coverage(tensors if complete else 0, tensors, nbytes, schedule.nbytes)
        told = {incident.number: incident for incident in (*also, *self._casebook.open)}
        return report(model, told.values(), coverage, complete=complete)

    def renew_lock(self) -> None:
        """After a fork: the thread that may have held the lock is not there any more."""
        self._stepping, self._asked = threading.Lock(), []
        self.scrubber.renew_lock()

    def begin_again(self, scrubber: Scrubber) -> None:
        """Go on with another baseline, from about where the last one was checked to."""
        scrubber.resume(self.scrubber)
        self.scrubber = scrubber

    def beside(self, nbytes: int) -> int:
        """Check the blocks that come next beside forward passes; return the bytes verified."""
        return self.some(nbytes, survey=self._survey_due())

    def some(self, nbytes: int, seconds: float | None = None, *, survey: bool = True) -> int:
        """Check the blocks that come next, and return how many bytes were verified. See Guard.

        With ``survey``, a pass begins with which tensors there are.
        """
        scrubber = self.scrubber
        passes = scrubber.position.passes
        if survey and scrubber.position.done == 0:
            self._survey(scrubber)
        if seconds is None:
            groups = grouped(scrubber.baseline, scrubber.take(nbytes))
        else:
            groups = ([ref] for ref in _within(scrubber, nbytes, seconds))
        _, verified = self._check_all(scrubber, groups)
        if scrubber.position.passes > passes:
            self._full_pass()
        self._since_step += verified
        return verified

    def step(self, nbytes: int) -> None:
        """Have ``nbytes`` checked from one forward pass to the next: this one pays for the rest.

        What the background thread checked meanwhile counts, also for some steps ahead, so that
        nothing is paid for twice. Of a device's memory a later pass judges what this one asks for,
        and nothing more is asked for until it has answered.
        """
        rest = nbytes - self._since_step
        if not self.scrubber.distant:
            if rest > 0:
                self.beside(rest)
        elif self._stepping.acquire(blocking=False):  # else another thread's pass is at it
            try:
                self._step(self.scrubber, rest)
            finally:
                self._stepping.release()
        self._since_step = min(max(-rest, 0), STEPS_AHEAD * nbytes)

    def _step(self, scrubber: Scrubber, nbytes: int) -> None:
        asked, self._asked = self._asked, []
        for run in asked:
            if scrubber.baseline.tensors.get(run.entry.tensor.name) is not run.entry:
                continue  # asked for before an update
            if run.sums.ready():
                self._look_at(scrubber, self._judge(scrubber, run)[1])
            else:
                self._asked.append(run)
        if self._asked:
            return
        if self._pass_ends:
            self._full_pass()
            self._pass_ends = False
        if nbytes <= 0:
            return
        passes = scrubber.position.passes
        if scrubber.position.done == 0 and self._survey_due():
            self._survey(scrubber)
        for refs in grouped(scrubber.baseline, scrubber.take(nbytes)):
            found = scrubber.ask(refs)
            if found is None:
                self._look_at(scrubber, refs)
            else:
                self._asked.append(found)
        self._pass_ends = scrubber.position.passes > passes

    def all(self) -> tuple[int, bool]:
        """Check every block; return how many bytes were verified, and whether all were."""
        scrubber = self.scrubber
        self._survey(scrubber)
        groups = grouped(scrubber.baseline, scrubber.schedule)
        blocks, nbytes = self._check_all(scrubber, groups)
        complete = blocks == scrubber.schedule.blocks
        if complete and blocks:
            self._full_checks += 1
            self._full_pass()
        return nbytes, complete

    def _survey_due(self) -> bool:
        return time.monotonic() - self._surveyed >= SURVEY_PERIOD

    def _survey(self, scrubber: Scrubber) -> None:
        self._surveyed = time.monotonic()
        self._settle(scrubber, scrubber.survey)

    def of(self, tensor: str, start: int, stop: int) -> None:
        """Check the blocks that hold bytes ``start:stop`` of a tensor."""
        scrubber = self.scrubber
        self._look_at(scrubber, scrubber.schedule.containing(tensor, start, stop))

    def _check_all(self, scrubber: Scrubber, groups: Iterable[list[BlockRef]]) -> tuple[int, int]:
        """Check groups of blocks; return how many were verified, and their bytes.

        A device sums up the next group while the one before is judged.
        """
        outcomes: list[Outcome] = []
        under_way: list[Run] = []
        for refs in groups:
            run = scrubber.ask(refs)
            if run is None:
                outcomes += self._look_at(scrubber, refs)
                continue
            under_way.append(run)
            if len(under_way) > 1:
                outcomes += self._finish(scrubber, under_way.pop(0))
        for run in under_way:
            outcomes += self._finish(scrubber, run)
        return sum(o.blocks for o in outcomes), sum(o.nbytes for o in outcomes)

    def _finish(self, scrubber: Scrubber, run: Run) -> list[Outcome]:
        outcome, rest = self._judge(scrubber, run)
        return [outcome, *self._look_at(scrubber, rest)]

    def _judge(self, scrubber: Scrubber, run: Run) -> tuple[Outcome, list[BlockRef]]:
        """Take down what a run proves; return it, and the blocks that have to be looked at."""
        return self._at_once(scrubber, lambda: scrubber.judge(run))

    def _at_once(
        self, scrubber: Scrubber, check: Callable[[], tuple[Outcome, list[BlockRef]]]
    ) -> tuple[Outcome, list[BlockRef]]:
        """Take down what a check of several blocks proves; return it and the blocks left over."""
        rest: list[BlockRef] = []

        def proved() -> Outcome:
            outcome, others = check()
            rest.extend(others)
            return outcome

        return self._counted(self._settle(scrubber, proved)), rest

    def _look_at(self, scrubber: Scrubber, refs: Sequence[BlockRef]) -> list[Outcome]:
        """Look at blocks that do not hold at first sight, and again at those that changed much."""
        outcome, rest = self._at_once(scrubber, lambda: scrubber.glance(refs))
        outcomes = [outcome, *(self._check(scrubber, ref, patient=True) for ref in rest)]
        suspects = [ref for outcome in outcomes for ref in outcome.suspects]
        if suspects:
            scrubber.wait()
            outcomes += [self._check(scrubber, ref, patient=False) for ref in suspects]
        return outcomes

    def _check(self, scrubber: Scrubber, ref: BlockRef, *, patient: bool) -> Outcome:
        return self._counted(self._settle(scrubber, lambda: scrubber.check(ref, patient=patient)))

    def _counted(self, outcome: Outcome) -> Outcome:
        if outcome.blocks:
            self._metrics.add(BLOCKS_VERIFIED, outcome.blocks)
            self._metrics.add(SCRUB_BYTES, outcome.nbytes)
        return outcome

    def _settle(self, scrubber: Scrubber, check: Callable[[], Outcome]) -> Outcome:
        """Check inside the gate, take down what was found, and react outside of it."""
        with self._gate.check() as let_in:
            # an update may have passed since the caller looked: its baseline is another one
            if not let_in or scrubber is not self.scrubber:
                return Outcome()
            outcome = check()
            incidents = self._casebook.take(outcome.deviations, outcome.sound)
        self._react(incidents)
        return outcome

    def _full_pass(self) -> None:
        self.last_full_pass = self._clock()
        self._metrics.set(LAST_FULL_PASS, self.last_full_pass)


def _within(scrubber: Scrubber, nbytes: int, seconds: float) -> Iterator[BlockRef]:
    """Yield blocks one at a time, so that none counts as done that time did not suffice for."""
    ends = time.monotonic() + seconds
    for _ in range(scrubber.schedule.blocks):
        ref = scrubber.take_one()
        if ref is None:
            return
        yield ref
        nbytes -= ref.nbytes
        if nbytes <= 0 or time.monotonic() >= ends:
            return
