"""From damaged rows to single elements, by the row residues (fingerprint-v1, section 4)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightguard.scan.digest import BLOCK_BYTES, block_digest
from weightguard.scan.formats import FORMATS
from weightguard.tensor import TensorView

BlockDigest: TypeAlias = Callable[[memoryview], bytes]

MODULUS = 1 << 64
MAX_EXACT_WORDS = 1 << 29
"""Words of a row up to which weighted sums of two changes do not wrap around."""
MAX_TRIALS = 64
"""Explanations of one block's rows that are compared with its digest."""
MAX_PAIRS = 64
"""Elements of two words that are tried for one row."""


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
    column = delta_column(delta)
    if column is None or column >= layout.row_words:
        return None
    offset = delta.row * layout.row_bytes + column * width
    new = int.from_bytes(tensor.read(offset, offset + width), "little")
    old = new - _signed(delta.sum)
    if not 0 <= old < 1 << (8 * width):
        return None
    return WordChange(delta.row, offset, width, old, new)


def changed_pairs(tensor: TensorView, delta: RowDelta) -> list[tuple[WordChange, ...]]:
    """Return the changes of both words of one 8-byte element that explain ``delta``.

    Deltas a and b of words 2k and 2k + 1 give sum = a + b and weighted = 2k * sum + b. For each k
    that follows from b below 2^32 in absolute value: about 2^32 / |sum| of them, so that few are
    left unless the sum is small, and none is known where it is 0. A block's digest must decide.
    """
    if tensor.dtype.block_bytes != 2 * tensor.dtype.word_bytes or tensor.dtype.word_bytes != 4:
        return []
    total, weighted = _signed(delta.sum), _signed(delta.weighted)
    elements = tensor.layout.row_words // 2
    if elements >= MAX_EXACT_WORDS // 2:
        return []
    first, last = 0, elements - 1
    if total:
        ends = sorted((weighted + sign * (1 << 32)) // (2 * total) for sign in (-1, 1))
        first, last = max(ends[0], first), min(ends[1] + 1, last)
    if last - first >= MAX_PAIRS:
        return []
    places = range(first, last + 1)
    pairs = (_pair(tensor, delta.row, k, total, weighted - 2 * k * total) for k in places)
    return [pair for pair in pairs if pair is not None]


def _pair(
    tensor: TensorView, row: int, place: int, total: int, second: int
) -> tuple[WordChange, ...] | None:
    offset = row * tensor.layout.row_bytes + 8 * place
    new = int.from_bytes(tensor.read(offset, offset + 8), "little")
    words = []
    for at, change in ((0, total - second), (4, second)):
        now = new >> 8 * at & 0xFFFFFFFF
        if not change or not 0 <= now - change < 1 << 32:
            return None
        words.append(WordChange(row, offset + at, 4, now - change, now))
    return tuple(words)


def delta_column(delta: RowDelta) -> int | None:
    """Return the word j with weighted = j * sum mod 2^64, None where there is none."""
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


Explained: TypeAlias = list[tuple[WordChange, ...]]
"""The changes of one element, of which any explains a damaged row."""


class DamagedBlock:
    """A damaged block, read once, whose digest says which old words were there."""

    def __init__(
        self,
        tensor: TensorView,
        block: int,
        expected: NDArray[np.uint8],
        digest: BlockDigest = block_digest,
    ):
        self._digest = digest
        self._start = block * BLOCK_BYTES
        self._data = tensor.read(self._start, min(self._start + BLOCK_BYTES, tensor.nbytes))
        self._expected: bytes = expected[block].tobytes()

    def restored(self, changes: Iterable[WordChange]) -> bytearray | None:
        """Return the block with the old words put back, or None where its digest differs."""
        data = bytearray(self._data)
        for word in changes:
            at = word.offset - self._start
            data[at : at + word.width] = word.old.to_bytes(word.width, "little")
        return data if self._digest(memoryview(data)) == self._expected else None


def changed_elements(tensor: TensorView, words: Sequence[WordChange]) -> list[ElementChange]:
    """Return the elements that changed words of one dtype block belong to.

    They are two where sub-byte neighbours or both parts of a complex number moved.
    """
    change = words[0]
    dtype = tensor.dtype
    group = change.offset // dtype.block_bytes
    first = group * dtype.block_elements
    if dtype.is_quantised or dtype.is_opaque:
        index = tensor.index(first)
        bits = 8 * change.width
        return [ElementChange(change.row, index, change.old, change.new, bits, None, False)]
    start = group * dtype.block_bytes
    new = int.from_bytes(tensor.read(start, start + dtype.block_bytes), "little")
    old = new
    for word in words:
        old ^= (word.old ^ word.new) << 8 * (word.offset - start)
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
    """Return the single elements that explain the damaged rows, confirmed where they can be.

    ``expected`` holds the manifest's block digests, uint8 of shape (blocks, 16). Reads each
    touched block once; nothing is written.
    """
    return [
        replace(element, confirmed=confirmed)
        for words, confirmed in explain(tensor, deltas, expected)
        for element in changed_elements(tensor, words)
    ]


def explain(
    tensor: TensorView,
    deltas: Sequence[RowDelta],
    expected: NDArray[np.uint8],
    digest: BlockDigest = block_digest,
) -> Iterator[tuple[tuple[WordChange, ...], bool]]:
    """Yield the words of one element that explain each damaged row, and whether that is confirmed.

    ``digest`` is what ``expected``, uint8 of shape (blocks, 16), was made with.
    """
    for block, rows in explained_blocks(tensor, deltas).items():
        yield from _chosen(DamagedBlock(tensor, block, expected, digest), rows)


def explained_blocks(tensor: TensorView, deltas: Iterable[RowDelta]) -> dict[int, list[Explained]]:
    """Return, for each block, what may have changed in those of its rows that can be explained."""
    by_block: dict[int, list[Explained]] = defaultdict(list)
    for delta in deltas:
        explanations = _explanations(tensor, delta)
        if explanations:
            by_block[explanations[0][0].block].append(explanations)
    return by_block


def restored_block(
    tensor: TensorView, block: int, expected: NDArray[np.uint8], rows: Sequence[Explained]
) -> bytearray | None:
    """Return the block whose digest agrees once the changes that ``rows`` suggest are undone.

    ``expected`` holds the manifest's block digests, uint8 of shape (blocks, 16).
    """
    damaged = DamagedBlock(tensor, block, expected)
    for choice in itertools.islice(itertools.product(*rows), MAX_TRIALS):
        data = damaged.restored(itertools.chain.from_iterable(choice))
        if data is not None:
            return data
    return None


def _explanations(tensor: TensorView, delta: RowDelta) -> list[tuple[WordChange, ...]]:
    """Return the changes within one element that explain a row; one block holds them all."""
    word = changed_word(tensor, delta)
    found: list[tuple[WordChange, ...]] = [] if word is None else [(word,)]
    found += changed_pairs(tensor, delta)
    return [words for words in found if words[0].block == found[0][0].block]


def _chosen(
    block: DamagedBlock, rows: Sequence[Explained]
) -> Iterable[tuple[tuple[WordChange, ...], bool]]:
    """Yield one explanation for each row of a block, and whether the block's digest agrees.

    Without a digest that agrees only single words are left, which need no second guess.
    """
    for choice in itertools.islice(itertools.product(*rows), MAX_TRIALS):
        if block.restored(itertools.chain.from_iterable(choice)) is not None:
            yield from ((words, True) for words in choice)
            return
    yield from ((row[0], False) for row in rows if len(row[0]) == 1)
