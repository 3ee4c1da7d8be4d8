"""Blocks that are checked together; in a device's memory, judged when their sums arrived.

What a run shows as moved is only pointed out: the look that follows judges each block by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightguard.guard.adapter import Adapter, Distant, Promised, Token
from weightguard.guard.baseline import Baseline, Key, TensorBaseline
from weightguard.guard.schedule import BlockRef

MAX_RUN = 4096
"""Blocks that are asked for at once: 4 GiB, whose sums take 12 MiB where rows have 8 KiB."""

MAX_GROUP = 32
"""Other blocks that are looked at without an update being let in between."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring blocks of one distant tensor, its token before they were asked for, and sums."""

    entry: TensorBaseline
    refs: tuple[BlockRef, ...]
    token: Token
    sums: Promised[NDArray[np.uint64]]

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.refs[-1].stop - self.refs[0].start

    def moved(self) -> frozenset[int]:
        """Wait for the sums; return the numbers of blocks that do not hold the baseline's."""
        first, firsts = self.refs[0].block, self.entry.firsts
        begin, end = firsts[first], firsts[self.refs[-1].block + 1]
        sums = self.sums.result()
        if sums.shape != (end - begin, 3):
            return frozenset(ref.block for ref in self.refs)
        parts = np.flatnonzero((sums != self.entry.residues[begin:end]).any(axis=1))
        return frozenset((np.searchsorted(firsts, begin + parts, side="right") - 1).tolist())


def grouped(baseline: Baseline, refs: Iterable[BlockRef]) -> Iterator[list[BlockRef]]:
    """Yield runs of neighbouring blocks of one distant tensor, and groups of any others."""
    run: list[BlockRef] = []
    for ref in refs:
        if run and not _belongs(baseline, ref, run):
            yield run
            run = []
        run.append(ref)
    if run:
        yield run


def _belongs(baseline: Baseline, ref: BlockRef, run: list[BlockRef]) -> bool:
    if _distant(baseline, ref):
        follows = run[-1].tensor == ref.tensor and run[-1].stop == ref.start
        return follows and len(run) < MAX_RUN
    return not _distant(baseline, run[-1]) and len(run) < MAX_GROUP


def _distant(baseline: Baseline, ref: BlockRef) -> bool:
    return baseline.tensors[ref.tensor].tensor.distant


def ask(adapter: Adapter, baseline: Baseline, refs: list[BlockRef], key: Key) -> Run | None:
    """Ask for the sums of a run; None for what has to be looked at. Raises AdapterError."""
    entry = baseline.tensors[refs[0].tensor]
    if not entry.tensor.distant or not isinstance(adapter, Distant):
        return None
    now = adapter.describe(entry.tensor.name)
    if now is None or now.kind != entry.tensor.kind:
        return None
    sums = adapter.sums(entry.tensor.name, refs[0].start, refs[-1].stop, key.secret)
    return Run(entry, tuple(refs), now.token, sums)
