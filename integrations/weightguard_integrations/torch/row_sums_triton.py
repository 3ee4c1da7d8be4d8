"""Sums of rows as one Triton kernel: a whole tensor in one launch, read once.

Imports Triton, which comes with torch where it is built for a GPU.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from weightguard.guard.sums import part_counts
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.tensor import DType, RowLayout

ROWS, COLUMNS = 4, 512
"""Row parts that one program sums up, and words of each that it reads at a time."""


def parts_before(block: int, row_words: int, block_words: int, cycle: int) -> int:
    """Return how many row parts the blocks before one have, on the host or in a kernel.

    That is one for each row that they touch, and one more for each of them that begins within a
    row, which all do but every ``cycle``-th.
    """
    rows = (block * block_words + row_words - 1) // row_words
    return rows + block - (block + cycle - 1) // cycle


_parts_before = triton.jit(parts_before)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_parts(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917 - a kernel's arguments
    words, secret, sums, first_block, before, words_here, row_words, block_words, cycle, longest,
    mask: tl.constexpr, part_step: tl.constexpr, word_step: tl.constexpr,
):  # fmt: skip
    """Sum up some row parts of one block; those that the block has not are left as they are."""
    block = first_block + tl.program_id(0).to(tl.int64)
    begin = tl.program_id(0).to(tl.int64) * block_words
    first_word = block * block_words - begin
    end = tl.minimum(begin + block_words, words_here)
    part = tl.program_id(1) * part_step + tl.arange(0, part_step)
    row = (first_word + begin) // row_words + part
    # in words from the first one here on
    start = tl.maximum(row * row_words - first_word, begin)
    length = tl.minimum((row + 1) * row_words - first_word, end) - start
    column = first_word + start - row * row_words
    plain = tl.zeros((part_step, word_step), tl.int64)
    placed = tl.zeros((part_step, word_step), tl.int64)
    keyed = tl.zeros((part_step, word_step), tl.int64)
    for at in range(0, longest, word_step):
        place = at + tl.arange(0, word_step).to(tl.int64)
        inside = place[None, :] < length[:, None]
        where = words + start[:, None] + place[None, :]
        word = tl.load(where, mask=inside, other=0).to(tl.int64) & mask
        number = tl.load(secret + place, mask=place < longest, other=0)
        plain += word
        placed += word * (column[:, None] + place[None, :])
        keyed += word * number[None, :]
    out = sums + (_parts_before(block, row_words, block_words, cycle) - before + part) * 3
    there = length > 0
    tl.store(out, tl.sum(plain, 1), mask=there)
    tl.store(out + 1, tl.sum(placed, 1), mask=there)
    tl.store(out + 2, tl.sum(keyed, 1), mask=there)


def part_sums(
    words: torch.Tensor, dtype: DType, layout: RowLayout, start: int, secret: torch.Tensor
) -> torch.Tensor:
    """As ``row_sums.part_sums``, in one launch; raises nothing and waits for nothing."""
    width, row = dtype.word_bytes, layout.row_words
    block_words, first_block = BLOCK_BYTES // width, start // BLOCK_BYTES
    counts = part_counts(layout, start, start + len(words) * width)
    cycle = row // math.gcd(row, block_words)
    sums = torch.empty((int(counts.sum()), 3), dtype=torch.int64, device=words.device)
    before = parts_before(first_block, row, block_words, cycle)
    _sum_parts[(len(counts), math.ceil(int(counts.max()) / ROWS))](
        words, secret, sums, first_block, before, len(words), row, block_words, cycle,
        min(row, block_words),
        mask=(1 << 8 * width) - 1, part_step=ROWS, word_step=COLUMNS,
    )  # fmt: skip
    return sums
