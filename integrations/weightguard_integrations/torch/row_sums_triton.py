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


@triton.jit  # type: ignore[untyped-decorator]
def _sum_parts(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917 - a kernel's arguments
    words, secret, sums, first_word, words_here, row_words, block_words, longest, parts,
    mask: tl.constexpr, part_step: tl.constexpr, word_step: tl.constexpr,
):  # fmt: skip
    """Sum up some row parts of one block; those that the block has not are left as they are."""
    begin = tl.program_id(0).to(tl.int64) * block_words
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
    out = sums + (tl.program_id(0).to(tl.int64) * parts + part) * 3
    there = length > 0
    tl.store(out, tl.sum(plain, 1), mask=there)
    tl.store(out + 1, tl.sum(placed, 1), mask=there)
    tl.store(out + 2, tl.sum(keyed, 1), mask=there)


def part_sums(
    words: torch.Tensor, dtype: DType, layout: RowLayout, start: int, secret: torch.Tensor
) -> torch.Tensor:
    """As ``row_sums.part_sums``, in one launch; raises nothing and waits for nothing."""
    width = dtype.word_bytes
    counts = part_counts(layout, start, start + len(words) * width)
    most, block_words = int(counts.max()), BLOCK_BYTES // width
    sums = torch.zeros((len(counts), most, 3), dtype=torch.int64, device=words.device)
    _sum_parts[(len(counts), math.ceil(most / ROWS))](
        words, secret, sums, start // width, len(words), layout.row_words, block_words,
        min(layout.row_words, block_words), most,
        mask=(1 << 8 * width) - 1, part_step=ROWS, word_step=COLUMNS,
    )  # fmt: skip
    if (counts == most).all():
        return sums.reshape(-1, 3)
    return torch.cat([sums[block, :count] for block, count in enumerate(counts.tolist())])
