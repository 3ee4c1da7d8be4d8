"""Blocks of a device's memory: sums of their rows, computed where they lie, stand for the bytes.

Of each part of a row in a block, with words u_0, u_1, ... from column c of the row on, all modulo
2^64: R = sum u_k and S = sum (c + k) u_k, the residues of fingerprint-v1 section 4, and
K = sum s_k u_k with numbers s_k that only this process knows.

- Every change of one or two words of a part moves R or S (the theorem of section 4).
- Any other change, made without knowledge of the s_k, leaves K as it was with a probability of at
  most 2^-(65 - w) for words of w bits: of a word's change d at least 64 - (w - 1) bits of s_k d are
  uniform, whatever the others are. That is 2^-57 for bytes, 2^-49 for 16 bits, 2^-33 for 32 (a
  multilinear universal hash; Carter and Wegman 1979).

A block's digest is the keyed one over the sums of its parts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weightguard.scan.digest import BLOCK_BYTES
from weightguard.scan.kernel import block_residues
from weightguard.tensor import DType, RowLayout


def part_counts(layout: RowLayout, start: int, stop: int) -> NDArray[np.int64]:
    """Return of how many rows each block that begins in bytes ``start:stop`` holds parts.

    ``start`` is the beginning of a block, ``stop`` the end of one.
    """
    starts = np.arange(start, stop, BLOCK_BYTES, dtype=np.int64)
    lasts = np.minimum(starts + BLOCK_BYTES, stop) - 1
    return lasts // layout.row_bytes - starts // layout.row_bytes + 1


def block_sums(
    dtype: DType, layout: RowLayout, data: NDArray[np.uint8], start: int, secret: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Return R, S and K, uint64 (parts, 3), of a block's bytes ``data`` from byte ``start`` on.

    What a device computes, on the host; for blocks that are suspected.
    """
    residues = block_residues(dtype, layout, data, start)
    words = data.view(f"<u{dtype.word_bytes}")
    column = start % layout.row_bytes // dtype.word_bytes
    head = min((layout.row_words - column) % layout.row_words, len(words))
    body = head + (len(words) - head) // layout.row_words * layout.row_words
    keyed = [
        _weighted(words[:head].reshape(1, -1), secret),
        _weighted(words[head:body].reshape(-1, layout.row_words), secret),
        _weighted(words[body:].reshape(1, -1), secret),
    ]
    return np.column_stack((residues, np.concatenate(keyed)))


def _weighted(parts: NDArray[np.unsignedinteger], secret: NDArray[np.uint64]) -> NDArray[np.uint64]:
    if not parts.size:
        return np.zeros(0, np.uint64)
    return parts.astype(np.uint64) @ secret[: parts.shape[1]]
