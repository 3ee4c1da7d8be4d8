"""From damaged rows to single elements, by the row residues (fingerprint-v1, section 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from weightguard.scan.digest import BLOCK_BYTES, block_digest
from weightguard.scan.formats import FORMATS
from weightguard.tensor import TensorView

MODULUS = 1 << 64


@dataclass(frozen=True, slots=True)
class RowDelta:
    """A row whose residues moved: observed minus expected sum and weighted sum, mod 2^64."""

    row: int
    sum: int
    weighted: int


@dataclass(frozen=True, slots=True)
class WordChange:
    """One changed residue word: its byte offset in the tensor, width, old and new value."""

    row: int
    offset: int
    width: int
    old: int
    new: int

    @property
    def block(self) -> int:
        """The 1 MiB block that holds the word."""
        return self.offset // BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class ElementChange:
    """One changed element, as far as the residues tell.

    ``values`` are old and new as numbers, None for GGML blocks, where ``index`` names the
    block's first element and the bits are those of one word of the block. ``confirmed`` says
    that putting the old bits back restores the block's digest; otherwise the row is only
    consistent with this change.
    """

    row: int
    index: tuple[int, ...]
    old_bits: int
    new_bits: int
    width_bits: int
    values: tuple[float, float] | None
    confirmed: bool

    @property
    def flipped(self) -> tuple[int, ...]:
        """The numbers of the bits that differ, least significant first."""
        difference = self.old_bits ^ self.new_bits
        return tuple(bit for bit in range(self.width_bits) if difference >> bit & 1)


def changed_word(tensor: TensorView, delta: RowDelta) -> WordChange | None:
    """Return the single word change that explains ``delta``, or None where none does.

    Solves weighted = j * sum mod 2^64 for the column j and checks that column and old value
    exist. Reads one word of the tensor.
    """
    layout, width = tensor.layout, tensor.dtype.word_bytes
    column = _column(delta)
    if column is None or column >= layout.row_words:
        return None
    offset = delta.row * layout.row_bytes + column * width
    new = int.from_bytes(tensor.read(offset, offset + width), "little")
    old = new - _signed(delta.sum)
    if not 0 <= old < 1 << (8 * width):
        return None
    return WordChange(delta.row, offset, width, old, new)


def _column(delta: RowDelta) -> int | None:
    if delta.sum == 0:
        return None
    twos = (delta.sum & -delta.sum).bit_length() - 1
    if delta.weighted & ((1 << twos) - 1):
        return None
    modulus = MODULUS >> twos
    # the sum's sign matters: divide the signed value, so that the odd part is the true one
    odd = (_signed(delta.sum) >> twos) % modulus
    return (delta.weighted >> twos) * pow(odd, -1, modulus) % modulus


def _signed(value: int) -> int:
    return value - MODULUS if value >> 63 else value


def confirmed_blocks(
    tensor: TensorView, changes: Sequence[WordChange], expected: NDArray[np.uint8]
) -> frozenset[int]:
    """Return the blocks whose digest matches once the old words are put back.

    ``expected`` holds the manifest's block digests, uint8 of shape (blocks, 16). Reads each
    touched block once; nothing is written.
    """
    by_block: dict[int, list[WordChange]] = defaultdict(list)
    for change in changes:
        by_block[change.block].append(change)
    confirmed = set()
    for block, words in by_block.items():
        start = block * BLOCK_BYTES
        data = tensor.read(start, min(start + BLOCK_BYTES, tensor.nbytes))
        for word in words:
            at = word.offset - start
            data[at : at + word.width] = word.old.to_bytes(word.width, "little")
        if block_digest(memoryview(data)) == expected[block].tobytes():
            confirmed.add(block)
    return frozenset(confirmed)


def changed_elements(tensor: TensorView, change: WordChange) -> list[ElementChange]:
    """Return the elements that a changed word belongs to; two where sub-byte neighbours moved."""
    dtype = tensor.dtype
    group = change.offset // dtype.block_bytes
    first = group * dtype.block_elements
    if dtype.is_quantised or dtype.is_opaque:
        index = tensor.index(first)
        bits = 8 * change.width
        return [ElementChange(change.row, index, change.old, change.new, bits, None, False)]
    start = group * dtype.block_bytes
    new = int.from_bytes(tensor.read(start, start + dtype.block_bytes), "little")
    shift = 8 * (change.offset - start)
    old = new ^ (change.old ^ change.new) << shift
    form = FORMATS[dtype.scalar]
    mask = (1 << form.bits) - 1
    changes = []
    for position in range(dtype.block_scalars):
        before, after = (bits >> position * form.bits & mask for bits in (old, new))
        if before != after:
            element = first + position * dtype.block_elements // dtype.block_scalars
            values = (float(form.decode(before)), float(form.decode(after)))
            changes.append(
                ElementChange(
                    change.row, tensor.index(element), before, after, form.bits, values, False
                )
            )
    return changes


def locate(
    tensor: TensorView,
    deltas: Sequence[RowDelta],
    expected: NDArray[np.uint8],
) -> list[ElementChange]:
    """Return the single elements that explain the damaged rows, confirmed where they can be."""
    words = [word for delta in deltas if (word := changed_word(tensor, delta)) is not None]
    confirmed = confirmed_blocks(tensor, words, expected)
    return [
        replace(element, confirmed=word.block in confirmed)
        for word in words
        for element in changed_elements(tensor, word)
    ]
