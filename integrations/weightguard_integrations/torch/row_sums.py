"""Sums of rows in plain torch, on any device: weighted sums of words, modulo 2^64.

int64 arithmetic wraps around on every device, which is what modulo 2^64 asks for. Words are widened
a chunk at a time, so scratch stays at a few chunks whatever the tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightguard.scan.digest import BLOCK_BYTES
from weightguard.tensor import DType, RowLayout

if TYPE_CHECKING:
    import torch

CHUNK_ELEMENTS = 1 << 20
"""Elements that are widened to int64 at a time: 8 MiB of scratch."""
_WORDS = {1: "uint8", 2: "int16", 4: "int32"}


def device_residues(matrix: torch.Tensor, word_bytes: int) -> torch.Tensor:
    """Return R and S of each row, int64 (rows, 2) modulo 2^64, computed on the matrix's device."""
    import torch

    words = words_of(matrix.contiguous(), word_bytes).reshape(matrix.shape[0], -1)
    columns = torch.arange(words.shape[1], device=words.device)
    return weighted_sums(words, [columns])


def words_of(tensor: torch.Tensor, word_bytes: int) -> torch.Tensor:
    """Return the words of a contiguous tensor as they lie, flat; their bits are unsigned."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).view(getattr(torch, _WORDS[word_bytes]))


def weighted_sums(matrix: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """Return the sum of each row's words, and that with each of the weights, int64 (rows, 1 + n).

    ``matrix`` holds words [rows, words] of ``words_of``, each of ``weights`` an int64 a word.
    """
    import torch

    mask = (1 << 8 * matrix.element_size()) - 1
    found = []
    for chunk in torch.split(matrix, max(1, CHUNK_ELEMENTS // max(matrix.shape[1], 1))):
        wide = chunk.to(torch.int64) & mask
        found.append(torch.stack([wide.sum(1), *((wide * w).sum(1) for w in weights)], 1))
    return torch.cat(found)


def part_sums(
    words: torch.Tensor,
    dtype: DType,
    layout: RowLayout,
    start: int,
    secret: torch.Tensor,
) -> torch.Tensor:
    """Return R, S and K of each row part of the blocks that ``words`` are, int64 (parts, 3).

    They begin at byte ``start`` of their tensor, the beginning of a block; ``secret`` is int64 and
    on their device. See ``weightguard.guard.sums``.
    """
    import torch

    row, width = layout.row_words, dtype.word_bytes
    aligned = BLOCK_BYTES % layout.row_bytes == 0
    block = len(words) if aligned else BLOCK_BYTES // width
    found = []
    for first in range(0, len(words), block):
        part = words[first : first + block]
        column = (start // width + first) % row
        head = min(-column % row, len(part))
        body = head + (len(part) - head) // row * row
        pieces = (
            (part[:head].reshape(1, -1), column),
            (part[head:body].reshape(-1, row), 0),
            (part[body:].reshape(1, -1), 0),
        )
        for matrix, begins in pieces:
            if matrix.numel():
                length = matrix.shape[1]
                columns = torch.arange(begins, begins + length, device=words.device)
                found.append(weighted_sums(matrix, [columns, secret[:length]]))
    return torch.cat(found)
