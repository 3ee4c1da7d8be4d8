"""Parity: XOR over interleaved groups of blocks of all tensors' bytes, one after the other.

The *stream* is the canonical bytes of all tensors in reading order, cut in blocks of 1 MiB. Each
1,024 consecutive blocks are a *stripe*, the last with what is left over. Block k of a stripe
belongs to its group k mod G, where G is the number of groups that hold at most 32 blocks each. So
a burst of up to G adjacent lost blocks costs each group one, and one is what a group restores.
Format: docs/spec/parity-v1.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from weightguard.checkpoint import Checkpoint
from weightguard.errors import ManifestError, WeightguardError
from weightguard.layout import Gap, Layout, decode_layout, gaps, layout_of
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.sidecar import COPY_BYTES, ArraySpec, Sidecar, SidecarWriter
from weightguard.tensor import TensorView
from weightguard.units import counted

GROUP_BLOCKS = 32
MAX_PENDING_GROUPS = 128
"""Groups whose sums are in memory while parity is made: 128 MiB; others wait in the file."""
MAX_GAP_BYTES = 1 << 30
"""Headers, metadata and tensors that do not lie in one run; they are kept as they are."""
MAX_LAYOUT_BYTES = 1 << 28

PARITY, GAPS, LAYOUT = "parity", "gaps", "layout"
_BYTES = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which blocks of a stream of ``nbytes`` bytes share a parity block."""

    nbytes: int
    block_bytes: int = BLOCK_BYTES
    group_blocks: int = GROUP_BLOCKS

    @property
    def blocks(self) -> int:
        """The number of blocks in the stream."""
        return -(-self.nbytes // self.block_bytes)

    @property
    def _stripe(self) -> int:
        return self.group_blocks * self.group_blocks

    def _stripe_of(self, number: int) -> tuple[int, int, int]:
        """Return a stripe's first block, and how many blocks and groups it has."""
        last = max(1, self.blocks // self._stripe) - 1
        first = number * self._stripe
        blocks = self.blocks - first if number == last else self._stripe
        return first, blocks, -(-blocks // self.group_blocks)

    def _of_stripes(self, number: int) -> int:
        # the last stripe takes what is left, so it may be nearly two long
        return min(number, max(1, self.blocks // self._stripe) - 1)

    def group_of(self, block: int) -> int:
        """Return the number of the group that holds ``block``."""
        stripe = self._of_stripes(block // self._stripe)
        first, _, groups = self._stripe_of(stripe)
        return stripe * self.group_blocks + (block - first) % groups

    def members(self, group: int) -> range:
        """Return the blocks of ``group``."""
        stripe = self._of_stripes(group // self.group_blocks)
        first, blocks, groups = self._stripe_of(stripe)
        return range(first + group - stripe * self.group_blocks, first + blocks, groups)

    @property
    def groups(self) -> int:
        """The number of groups."""
        if not self.blocks:
            return 0
        stripe = self._of_stripes(self.blocks)
        return stripe * self.group_blocks + self._stripe_of(stripe)[2]

    def block_length(self, block: int) -> int:
        """Return the size of a block: all but the last are full."""
        return min(self.block_bytes, self.nbytes - block * self.block_bytes)

    def group_length(self, group: int) -> int:
        """Return the size of a group's parity: that of its first and longest block."""
        return self.block_length(self.members(group)[0])

    @property
    def parity_bytes(self) -> int:
        """The size of all parity blocks together."""
        if not self.groups:
            return 0
        return (self.groups - 1) * self.block_bytes + self.group_length(self.groups - 1)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (block, first byte, past the last byte) of the stream's range, in its blocks."""
        while start < end:
            block, column = divmod(start, self.block_bytes)
            stop = min(end, (block + 1) * self.block_bytes)
            yield block, column, column + stop - start
            start = stop


def stream_starts(order: Sequence[int], views: Sequence[TensorView]) -> tuple[dict[int, int], int]:
    """Return where each tensor begins in the stream, by its number, and the stream's size."""
    starts, end = {}, 0
    for number in order:
        starts[number] = end
        end += views[number].nbytes
    return starts, end


class ParityWriter:
    """Adds up parity as a scan reads blocks, in any order and from several threads."""

    def __init__(self, checkpoint: Checkpoint, numbers: dict[str, int]):
        views = sorted(checkpoint.tensors, key=lambda tensor: numbers[tensor.name])
        layout = layout_of(checkpoint, numbers)
        starts, nbytes = stream_starts(layout.order, views)
        self._starts = {view.name: starts[numbers[view.name]] for view in views}
        self._grouping = Grouping(nbytes)
        self._left = [self._group_bytes(group) for group in range(self._grouping.groups)]
        self._sums: dict[int, NDArray[np.uint8]] = {}
        self._in_file: set[int] = set()
        self._lock = threading.Lock()
        self._writer = _sidecar_writer(layout, [*gaps(layout, views)], self._grouping, checkpoint)

    def _group_bytes(self, group: int) -> int:
        return sum(map(self._grouping.block_length, self._grouping.members(group)))

    def add(self, tensor: TensorView, offset: int, data: memoryview) -> None:
        """Take in the canonical bytes of ``tensor`` from ``offset`` on; each byte once."""
        values = np.frombuffer(data, np.uint8)
        start = self._starts[tensor.name] + offset
        done = 0
        with self._lock:
            for block, first, last in self._grouping.pieces(start, start + len(values)):
                group = self._grouping.group_of(block)
                total = self._sum(group)[first:last]
                np.bitwise_xor(total, values[done : done + last - first], out=total)
                done += last - first
                self._left[group] -= last - first
                if not self._left[group]:
                    self._write(group)

    def _sum(self, group: int) -> NDArray[np.uint8]:
        total = self._sums.get(group)
        if total is None:
            if len(self._sums) >= MAX_PENDING_GROUPS:
                self._write(next(iter(self._sums)))
            length = self._grouping.group_length(group)
            total = (
                self._writer.read(PARITY, group * BLOCK_BYTES, length)
                if group in self._in_file
                else np.zeros(length, np.uint8)
            )
            self._sums[group] = total
        return total

    def _write(self, group: int) -> None:
        self._writer.write(PARITY, group * BLOCK_BYTES, self._sums.pop(group))
        self._in_file.add(group)

    def finish(self) -> Sidecar:
        """Return the parity sidecar, opened for reading."""
        assert not self._sums, "every byte of every tensor was added"
        return self._writer.finish()


def _sidecar_writer(
    layout: Layout, places: Sequence[Gap], grouping: Grouping, checkpoint: Checkpoint
) -> SidecarWriter:
    text = np.frombuffer(msgspec.json.encode(layout), np.uint8)
    kept = sum(gap.end - gap.start for gap in places)
    if kept > MAX_GAP_BYTES or len(text) > MAX_LAYOUT_BYTES:
        raise WeightguardError(
            f"parity would have to keep {counted(kept, 'byte')} of headers, metadata and tensors "
            f"that do not lie in one run of their file, above the limit of {MAX_GAP_BYTES}: save "
            "the checkpoint as safetensors, or write the manifest without --parity."
        )
    writer = SidecarWriter(
        ArraySpec(name, _BYTES, (size,))
        for name, size in ((LAYOUT, len(text)), (GAPS, kept), (PARITY, grouping.parity_bytes))
    )
    writer.write(LAYOUT, 0, text)
    files = {file.name: file for file in checkpoint.files}
    done = 0
    for gap in places:
        for start in range(gap.start, gap.end, COPY_BYTES):
            length = min(COPY_BYTES, gap.end - start)
            data = files[gap.file].read(start, length, limit=COPY_BYTES)
            writer.write(GAPS, done, np.frombuffer(data, np.uint8))
            done += length
    return writer


@dataclass(frozen=True, slots=True)
class Parity:
    """A parity sidecar opened for reading, checked against the tensors of its manifest."""

    sidecar: Sidecar
    layout: Layout
    grouping: Grouping
    starts: dict[int, int]
    gaps: tuple[tuple[Gap, int], ...]
    """Each gap, and where its bytes begin among those that are kept."""

    @classmethod
    def of(cls, sidecar: Sidecar, views: Sequence[TensorView]) -> Parity:
        """Return the parity in ``sidecar``; ManifestError where it does not fit the tensors."""
        arrays = sidecar.arrays
        sound = arrays.keys() == {PARITY, GAPS, LAYOUT} and all(
            view.dtype.name == "U8" and len(view.shape) == 1 for view in arrays.values()
        )
        if not sound or arrays[LAYOUT].nbytes > MAX_LAYOUT_BYTES:
            raise ManifestError("the parity sidecar does not hold the arrays of parity-v1")
        layout = decode_layout(sidecar.read(LAYOUT).tobytes(), views)
        starts, nbytes = stream_starts(layout.order, views)
        placed, kept = [], 0
        for gap in gaps(layout, views):
            placed.append((gap, kept))
            kept += gap.end - gap.start
        grouping = Grouping(nbytes)
        if (arrays[PARITY].nbytes, arrays[GAPS].nbytes) != (grouping.parity_bytes, kept):
            raise ManifestError("the parity sidecar is not of the size that its tensors ask for")
        return cls(sidecar, layout, grouping, starts, tuple(placed))

    def columns(self, group: int, first: int, last: int) -> NDArray[np.uint8]:
        """Return bytes ``first`` to ``last`` of a group's parity block."""
        return self.sidecar.read(PARITY, group * BLOCK_BYTES + first, last - first)

    def gap_bytes(self, at: int, length: int) -> bytes:
        """Return ``length`` bytes that are kept of gaps, from ``at`` on."""
        return self.sidecar.read(GAPS, at, length).tobytes()


__all__ = ["Grouping", "Parity", "ParityWriter", "stream_starts"]
