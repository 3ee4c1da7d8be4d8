"""Going round the blocks of a baseline, by budget or all at once, and handing on what is found.

Checks come from three sides (forward passes, a background thread, callers) and never overlap with
a declared update, which puts another scrubber in place. What they find is taken down inside the
gate and reacted to outside of it, so a reaction may call the guard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.casebook import Casebook
from weightguard.guard.gate import Gate
from weightguard.guard.incident import Incident
from weightguard.guard.ledger import Place
from weightguard.guard.metrics import BLOCKS_VERIFIED, LAST_FULL_PASS, SCRUB_BYTES, Metrics
from weightguard.guard.schedule import BlockRef
from weightguard.guard.scrub import Outcome, Scrubber

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

    @property
    def passes(self) -> int:
        """How often every block was checked: in turn, or all at once."""
        return self.scrubber.position.passes + self._full_checks

    def find(self, place: Place) -> tuple[TensorBaseline, BlockRef] | None:
        """Return what a place's block is held to now, None where the baseline has it not."""
        ref = self.scrubber.schedule.find(place.subject, place.block or 0)
        return None if ref is None else (self.scrubber.baseline.tensors[ref.tensor], ref)

    def begin_again(self, scrubber: Scrubber) -> None:
        """Go on with another baseline, from about where the last one was checked to."""
        scrubber.resume(self.scrubber)
        self.scrubber = scrubber

    def some(self, nbytes: int, seconds: float | None = None) -> int:
        """Check the blocks that come next, and return how many bytes were verified. See Guard."""
        scrubber = self.scrubber
        passes = scrubber.position.passes
        if scrubber.position.done == 0:
            self._settle(scrubber, scrubber.survey)
        blocks = scrubber.take(nbytes) if seconds is None else _within(scrubber, nbytes, seconds)
        _, verified = self._check_all(scrubber, blocks)
        if scrubber.position.passes > passes:
            self._full_pass()
        return verified

    def all(self) -> tuple[int, bool]:
        """Check every block; return how many bytes were verified, and whether all were."""
        scrubber = self.scrubber
        self._settle(scrubber, scrubber.survey)
        blocks, nbytes = self._check_all(scrubber, scrubber.schedule)
        complete = blocks == scrubber.schedule.blocks
        if complete and blocks:
            self._full_checks += 1
            self._full_pass()
        return nbytes, complete

    def of(self, tensor: str, start: int, stop: int) -> None:
        """Check the blocks that hold bytes ``start:stop`` of a tensor."""
        scrubber = self.scrubber
        self._check_all(scrubber, scrubber.schedule.containing(tensor, start, stop))

    def _check_all(self, scrubber: Scrubber, refs: Iterable[BlockRef]) -> tuple[int, int]:
        """Check blocks; return how many were verified, and their bytes."""
        outcomes = [self._check(scrubber, ref, patient=True) for ref in refs]
        suspects = [ref for outcome in outcomes for ref in outcome.suspects]
        if suspects:
            scrubber.wait()
            outcomes += [self._check(scrubber, ref, patient=False) for ref in suspects]
        return sum(o.blocks for o in outcomes), sum(o.nbytes for o in outcomes)

    def _check(self, scrubber: Scrubber, ref: BlockRef, *, patient: bool) -> Outcome:
        outcome = self._settle(scrubber, lambda: scrubber.check(ref, patient=patient))
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
