"""The schedule under every sequence of budgets: bounded passes, nothing twice, nothing left out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from weightguard.guard import Pace, Position, Schedule
from weightguard.guard.schedule import LEAST_CHARGE, BlockRef
from weightguard.scan.digest import BLOCK_BYTES, block_count

SIZES = st.lists(st.integers(0, 5 * BLOCK_BYTES), max_size=6).map(
    lambda sizes: [(f"t{number}", size) for number, size in enumerate(sizes)]
)
PORTIONS = st.integers(0, 8 * BLOCK_BYTES)


def charge(ref: BlockRef) -> int:
    return max(ref.nbytes, LEAST_CHARGE)


class Passes(RuleBasedStateMachine):
    """A guard that takes portions of any size, and whose model changes now and then."""

    @initialize(sizes=SIZES, seed=st.integers(0, 9))
    def begin(self, sizes: list[tuple[str, int]], seed: int) -> None:
        self.schedule = Schedule(sizes)
        self.position = self.schedule.begin(random.Random(seed))
        self.taken: list[BlockRef] = []
        self.paid = self.cost = 0

    @rule(budget=PORTIONS)
    def take(self, budget: int) -> None:
        before = self.position
        self.position, blocks = self.schedule.take(before, budget)
        assert len(set(blocks)) == len(blocks) <= self.schedule.blocks
        self.taken += blocks
        self.paid += budget
        self.cost += sum(map(charge, blocks))
        done = before.done + len(blocks)
        assert self.position.passes == before.passes + (done // max(self.schedule.blocks, 1))

    @rule()
    def take_one(self) -> None:
        if self.schedule.blocks:
            self.position, block = self.schedule.following(self.position)
            self.taken.append(block)
            self.paid += charge(block)
            self.cost += charge(block)

    @rule(sizes=SIZES)
    def change_the_model(self, sizes: list[tuple[str, int]]) -> None:
        changed = Schedule(sizes)
        following = [self.schedule.block((self.position.block + n) % self.schedule.blocks)
                     for n in range(self.schedule.blocks)]  # fmt: skip
        position = changed.resume(self.position, self.schedule)
        assert (position.done, position.passes) == (0, self.position.passes)
        kept = [b for b in following if changed.find(b.tensor, b.block)]
        if kept:
            assert changed.block(position.block)[:2] == kept[0][:2]
        self.schedule, self.position, self.taken = changed, position, []

    @invariant()
    def every_window_of_a_pass_holds_every_block(self) -> None:
        blocks = self.schedule.blocks
        if blocks and len(self.taken) >= blocks:
            assert set(self.taken[-blocks:]) == set(self.schedule)

    @invariant()
    def never_spends_a_block_more_than_was_paid(self) -> None:
        assert self.cost < self.paid + BLOCK_BYTES + 1


TestPasses = Passes.TestCase
TestPasses.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@given(SIZES)
def test_blocks_tile_every_tensor(sizes: list[tuple[str, int]]) -> None:
    schedule = Schedule(sizes)
    assert schedule.blocks == sum(block_count(size) for _, size in sizes)
    assert schedule.nbytes == sum(size for _, size in sizes)
    ends = dict.fromkeys(dict(sizes), 0)
    for ref in schedule:
        assert (ref.start, ref.block) == (ends[ref.tensor], ref.start // BLOCK_BYTES)
        assert 0 < ref.nbytes <= BLOCK_BYTES
        ends[ref.tensor] = ref.stop
    assert ends == dict(sizes)


@settings(deadline=None)
@given(st.integers(BLOCK_BYTES // 16, 40 * BLOCK_BYTES), st.integers(1, 9))
def test_a_full_pass_takes_no_more_portions_than_its_bytes(portion: int, tensors: int) -> None:
    schedule = Schedule([(str(n), 3 * BLOCK_BYTES) for n in range(tensors)])
    position, portions = Position(), 0
    while position.passes == 0:
        position, _ = schedule.take(position, portion)
        portions += 1
    assert portions <= -(-schedule.nbytes // portion)


def test_small_tensors_cost_what_visiting_them_takes() -> None:
    schedule = Schedule([(str(n), 4) for n in range(1000)])
    _, blocks = schedule.take(Position(), BLOCK_BYTES)
    assert len(blocks) == BLOCK_BYTES // LEAST_CHARGE


def test_a_budget_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="below 0"):
        Schedule([]).take(Position(), -1)


def test_a_plan_without_blocks_gives_none() -> None:
    position, blocks = Schedule([("a", 0)]).take(Position(), 1 << 30)
    assert (position, blocks) == (Position(), ())


def test_periods_keep_the_rate_on_average_and_vary() -> None:
    pace, generator = Pace(rate=500_000_000, slice=4 << 20), random.Random(3)
    periods = [pace.period(generator) for _ in range(4000)]
    mean = (4 << 20) / 500_000_000
    assert sum(periods) / len(periods) == pytest.approx(mean, rel=0.02)
    assert min(periods) < 0.8 * mean < 1.2 * mean < max(periods)
