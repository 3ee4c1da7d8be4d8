"""The packed layout and the checked product of ternary-layout-v1, written to be read.

NumPy only; slow; the kernel must agree in every bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROUP, TILE = 16, 64
OFFSET = {True: 1, False: 128}
TILE_COLUMNS = {True: 16, False: 4}
RADIX = {True: 3, False: 256}


def row_weight(row: int) -> int:
    """Return the odd weight of a row in the check (section 4)."""
    v = (row + 1) * 0x9E3779B1 & 0xFFFFFFFF
    v = (v ^ v >> 15) * 0x85EBCA77 & 0xFFFFFFFF
    signed = v - (1 << 32) if v >> 31 else v
    return signed >> 15 | 1


def balanced_digits(value: int, radix: int) -> list[int]:
    """Return the balanced digits of value, least significant first; none for 0."""
    digits = []
    while value:
        digit = value % radix
        if digit > (radix - 1) // 2:
            digit -= radix
        digits.append(digit)
        value = (value - digit) // radix
    return digits


def padded_rows(weight: NDArray[np.int8], *, ternary: bool) -> tuple[NDArray[np.int64], int]:
    """Return all rows as they are packed, [16 * groups, padded K], and the count of digits."""
    rows, columns = weight.shape
    vector = [sum(row_weight(i) * int(weight[i, k]) for i in range(rows)) for k in range(columns)]
    spelled = [balanced_digits(value, RADIX[ternary]) for value in vector]
    digits = max(1, *map(len, spelled))
    groups, check_groups = -(-rows // GROUP), -(-(1 + digits) // GROUP)
    out = np.zeros((GROUP * (groups + check_groups), -(-columns // 16) * 16), np.int64)
    out[:rows, :columns] = weight
    first = GROUP * groups
    out[first, :columns] = 1
    for k, column in enumerate(spelled):
        out[first + 1 : first + 1 + len(column), k] = column
    return out, digits


def pack(weight: NDArray[np.int8], *, ternary: bool) -> bytes:
    """Return the packed bytes (sections 2 and 3)."""
    rows, _ = padded_rows(weight, ternary=ternary)
    groups, tiles = len(rows) // GROUP, rows.shape[1] // TILE_COLUMNS[ternary]
    packed = bytearray()
    for first in range(0, groups, 2):
        for tile in range(tiles):
            for group in range(first, min(first + 2, groups)):
                packed += _tile(rows[group * GROUP : (group + 1) * GROUP], tile, ternary=ternary)
    return bytes(packed)


def _tile(rows: NDArray[np.int64], tile: int, *, ternary: bool) -> bytes:
    out = bytearray(TILE)
    for lane in range(GROUP):
        for q in range(4):
            if ternary:
                codes = [int(rows[lane, 16 * tile + 4 * f + q]) + 1 for f in range(4)]
                out[4 * lane + q] = sum(code << 2 * f for f, code in enumerate(codes))
            else:
                out[4 * lane + q] = int(rows[lane, 4 * tile + q]) + 128
    return bytes(out)


def quantise(x: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return int8 activations [M, K] as int64, and the scale of each token [M] (section 5)."""
    wild = ~np.isfinite(x).all(axis=1)
    bound = np.maximum(np.abs(np.where(wild[:, None], 0, x)).max(axis=1), np.float32(1e-5))
    inverse = np.float32(127) / bound
    codes = np.rint(np.where(wild[:, None], 0, x) * inverse[:, None]).astype(np.int64)
    return codes, np.where(wild, np.float32(np.nan), bound / np.float32(127)).astype(np.float32)


def linear(
    weight: NDArray[np.int8], scales: NDArray[np.float32], x: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the product in binary32, [M, N]: one rounding a multiplication, none fused."""
    codes, steps = quantise(x)
    exact = codes @ weight.T.astype(np.int64)
    return exact.astype(np.float32) * (steps[:, None] * scales[None, :])
