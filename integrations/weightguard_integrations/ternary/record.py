"""What is recorded of packed bytes when they are made, and how damage is located and undone.

Block digests find damage; residues of each group's bytes (fingerprint-v1, section 4, for a U8
tensor of shape [groups, bytes of a group]) name the byte that changed, if only one of the group
did. A correction counts only when the block's digest confirms it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from weightguard.scan.digest import BLOCK_BYTES, block_digest
from weightguard.scan.kernel import BlockKernel
from weightguard.tensor import DTYPES, row_layout

MODULUS = 1 << 64


class ByteChange(NamedTuple):
    """One changed byte: its offset in the packed bytes, what it was and what it is."""

    offset: int
    old: int
    new: int


def block_digests(data: NDArray[np.uint8]) -> tuple[bytes, ...]:
    """Return the XXH3-128 of each 1 MiB block."""
    return tuple(block_digest(block) for block in _blocks(data))


def _blocks(data: NDArray[np.uint8]) -> Iterator[memoryview]:
    view = data.data
    for start in range(0, len(data), BLOCK_BYTES):
        yield view[start : start + BLOCK_BYTES]


def residues(data: NDArray[np.uint8], rows: int) -> NDArray[np.uint64]:
    """Return R and S of ``rows`` equal rows of bytes, uint64 of shape (rows, 2)."""
    dtype = DTYPES["U8"]
    layout = row_layout(dtype, (rows, len(data) // rows))
    totals = np.zeros((layout.rows, 2), np.uint64)
    engine = BlockKernel(dtype, layout, columns=False)
    for start in range(0, len(data), BLOCK_BYTES):
        size = min(BLOCK_BYTES, len(data) - start)
        scan = engine.scan(data[start : start + size], start, size)
        totals[scan.first_word_row : scan.first_word_row + len(scan.residues)] += scan.residues
    return totals


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """Digests and residues of packed bytes as they were made."""

    rows: int
    digests: tuple[bytes, ...]
    residues: NDArray[np.uint64]

    @classmethod
    def of(cls, data: NDArray[np.uint8], rows: int) -> PackedRecord:
        """Record bytes that are known to be right, seen as ``rows`` equal rows."""
        return cls(rows, block_digests(data), residues(data, rows))

    def damaged(self, data: NDArray[np.uint8]) -> list[int]:
        """Return the blocks whose digest is not the recorded one."""
        now = block_digests(data)
        return [n for n, digest in enumerate(now) if digest != self.digests[n]]

    def holds(self, data: NDArray[np.uint8], block: int) -> bool:
        """Whether a block has its recorded digest."""
        start = block * BLOCK_BYTES
        return block_digest(data.data[start : start + BLOCK_BYTES]) == self.digests[block]

    def changes(self, data: NDArray[np.uint8]) -> list[ByteChange]:
        """Return, for each row whose residues moved, the one byte that would explain it."""
        found = []
        delta = residues(data, self.rows) - self.residues
        size = len(data) // len(delta)
        for row in np.flatnonzero(delta.any(axis=1)).tolist():
            change = _one_byte(data, row * size, size, *delta[row].tolist())
            if change is not None:
                found.append(change)
        return found

    def repair(self, data: NDArray[np.uint8], golden: NDArray[np.uint8] | None) -> list[int]:
        """Put right what can be, in place; return the blocks that stay damaged.

        First single bytes by residues, then whole blocks of ``golden``; what the recorded digest
        does not confirm is taken back.
        """
        damaged = self.damaged(data)
        changes = self.changes(data) if damaged else []
        return [block for block in damaged if not self._repair_block(data, block, changes, golden)]

    def _repair_block(
        self,
        data: NDArray[np.uint8],
        block: int,
        changes: list[ByteChange],
        golden: NDArray[np.uint8] | None,
    ) -> bool:
        here = slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
        before = data[here].copy()
        for change in changes:
            if change.offset // BLOCK_BYTES == block:
                data[change.offset] = change.old
        if self.holds(data, block):
            return True
        data[here] = before
        if golden is None or not self.holds(golden, block):
            return False
        data[here] = golden[here]
        return True


def _one_byte(
    data: NDArray[np.uint8], start: int, size: int, change: int, weighted: int
) -> ByteChange | None:
    """Solve d = new - old, j * d = weighted for a byte j of the row (fingerprint-v1, section 4)."""
    d = change - MODULUS if change >> 63 else change
    moved = weighted - MODULUS if weighted >> 63 else weighted
    if d == 0 or moved % d:
        return None
    column = moved // d
    if not 0 <= column < size:
        return None
    new = int(data[start + column])
    old = new - d
    return ByteChange(start + column, old, new) if 0 <= old <= 255 else None
