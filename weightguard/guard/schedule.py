"""Which blocks a guard checks next: a plan and a position in it, without clock, input or output.

Blocks come round in one fixed cyclic order, tensor by tensor, so that two checks of a block are
never more than one pass apart, whoever asks for the next ones and in whatever portions: a
forward pass that affords a few megabytes, and a thread that keeps to a rate. Order and place to
start are the process's own secret where they are drawn from a secret generator.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from weightguard.scan.digest import BLOCK_BYTES, block_count

LEAST_CHARGE = 32 << 10
"""Bytes that a block costs at least: visiting a small one takes as long as hashing this many."""

JITTER = 0.25
"""Share of its length by which a period varies in either direction."""


class BlockRef(NamedTuple):
    """One block of a live tensor: its bytes are ``start:stop``."""

    tensor: str
    block: int
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.stop - self.start


class Random(Protocol):
    """The part of ``random.Random`` that a schedule draws from."""

    def randrange(self, stop: int, /) -> int:
        """Return an integer from 0 up to ``stop``, itself not included."""
        ...

    def random(self) -> float:
        """Return a number from 0 up to 1, itself not included."""
        ...


@dataclass(frozen=True, slots=True)
class Position:
    """How far a guard came in a schedule.

    ``block`` is the next one, counted along the plan; ``done`` blocks of the current pass are
    behind it, and ``passes`` whole passes. ``debt`` is what the last block cost beyond the budget,
    in bytes, to be paid before the next.
    """

    block: int = 0
    done: int = 0
    passes: int = 0
    debt: int = 0


class Schedule:
    """The cyclic order of all blocks of some tensors. Immutable; positions are passed in."""

    def __init__(self, sizes: Sequence[tuple[str, int]]):
        """Plan tensors of the given names and sizes in bytes; those without bytes are left out."""
        self._sizes = [(name, nbytes) for name, nbytes in sizes if nbytes]
        counts = [block_count(nbytes) for _, nbytes in self._sizes]
        self._ends = list(itertools.accumulate(counts))
        self._firsts = {
            name: end - count
            for (name, _), end, count in zip(self._sizes, self._ends, counts, strict=True)
        }
        self.nbytes = sum(nbytes for _, nbytes in self._sizes)

    @property
    def blocks(self) -> int:
        """The number of blocks in a pass."""
        return self._ends[-1] if self._ends else 0

    def block(self, number: int) -> BlockRef:
        """Return block ``number`` of the plan."""
        tensor = bisect.bisect_right(self._ends, number)
        name, nbytes = self._sizes[tensor]
        block = number - self._firsts[name]
        return BlockRef(name, block, block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, nbytes))

    def __iter__(self) -> Iterator[BlockRef]:
        return map(self.block, range(self.blocks))

    def begin(self, random: Random) -> Position:
        """Return a position to start from, which an onlooker cannot foretell."""
        return Position(random.randrange(self.blocks) if self.blocks else 0)

    def take(self, position: Position, budget: int) -> tuple[Position, tuple[BlockRef, ...]]:
        """Return the blocks that ``budget`` more bytes pay for, and the position after them.

        At most one pass, each block once. Over any number of calls the bytes taken (a small block
        counts as LEAST_CHARGE) exceed the budgets by less than one block; what is left over after
        a whole pass lapses. Raises ValueError for a budget below 0.
        """
        if budget < 0:
            raise ValueError(f"a budget of {budget} bytes is below 0")
        taken: list[BlockRef] = []
        credit = budget - position.debt
        while credit > 0 and len(taken) < self.blocks:
            block = self.block((position.block + len(taken)) % self.blocks)
            taken.append(block)
            credit -= max(block.nbytes, LEAST_CHARGE)
        after = self._after(position, len(taken))
        return replace(after, debt=max(-credit, 0)), tuple(taken)

    def following(self, position: Position) -> tuple[Position, BlockRef]:
        """Return the one block that comes next, whatever it costs, and the position after it.

        Raises IndexError where the plan has no blocks.
        """
        return self._after(position, 1), self.block(position.block)

    def _after(self, position: Position, blocks: int) -> Position:
        """Return the position after that many more blocks, one pass at most."""
        if not blocks:
            return position
        passes, done = divmod(position.done + blocks, self.blocks)
        return replace(
            position,
            block=(position.block + blocks) % self.blocks,
            done=done,
            passes=position.passes + passes,
        )

    def find(self, tensor: str, block: int) -> BlockRef | None:
        """Return a block of a tensor, None where the plan has no such block."""
        number = self._number(tensor, block)
        return None if number is None else self.block(number)

    def containing(self, tensor: str, start: int, stop: int) -> tuple[BlockRef, ...]:
        """Return the blocks that bytes ``start:stop`` of a tensor lie in, none if it has none."""
        blocks = (self.find(tensor, b) for b in range(start // BLOCK_BYTES, block_count(stop)))
        return tuple(block for block in blocks if block is not None)

    def resume(self, position: Position, former: Schedule) -> Position:
        """Return where to go on in this plan after ``position`` in another one.

        That is the next block of the old plan that this one has too. A new pass begins there.
        """
        kept = replace(position, block=0, done=0)
        for ahead in range(former.blocks):
            block = former.block((position.block + ahead) % former.blocks)
            number = self._number(block.tensor, block.block)
            if number is not None:
                return replace(kept, block=number)
        return kept

    def _number(self, tensor: str, block: int) -> int | None:
        first = self._firsts.get(tensor)
        if first is None:
            return None
        number = first + block
        return number if number < self.blocks and self.block(number).tensor == tensor else None


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a background pass goes: ``rate`` bytes a second, ``slice`` bytes at a time."""

    rate: int
    slice: int = 16 * BLOCK_BYTES

    def period(self, random: Random) -> float:
        """Return the seconds from the start of one slice to that of the next, jittered.

        On average they are slice/rate, so that the rate is kept.
        """
        return self.slice / self.rate * (1 + JITTER * (2 * random.random() - 1))
