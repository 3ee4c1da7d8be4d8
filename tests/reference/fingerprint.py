"""docs/spec/fingerprint-v1.md, written down a second time: slow, and of the standard library only.

Reads as the page does, section by section. Left out are BLAKE3 and XXH3, which the standard
library lacks, and GGML blocks: their scalars are dequantised values, and come in from outside.
"""

from __future__ import annotations

import hashlib
import math
import struct
import sys
from dataclasses import dataclass, field

MASK64 = 2**64 - 1
BLOCK_BYTES = 1 << 20
MIN_ROW_ELEMENTS = 64
MAX_COLUMNS = 1 << 20
CHUNK_SCALARS = 4096
LANES = 32

# Section 6: name -> (elements of a dtype block, its bytes, bytes of a word, scalar format,
# scalars of a dtype block)
DTYPES: dict[str, tuple[int, int, int, str, int]] = {
    "C64": (1, 8, 4, "F32", 2),
    "C128": (1, 16, 4, "F64", 2),
}
for size, names in (
    (1, "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ"),
    (2, "U16 I16 F16 BF16"),
    (4, "U32 I32 F32"),
    (8, "U64 I64 F64"),
):
    DTYPES.update({name: (1, size, min(size, 4), name, 1) for name in names.split()})
for elements, nbytes, names in ((2, 1, "F4 I4 U4"), (4, 1, "I2 U2"), (4, 3, "F6_E2M3 F6_E3M2")):
    DTYPES.update({name: (elements, nbytes, 1, name, elements) for name in names.split()})

# Section 5: name -> (bits, exponent bits, mantissa bits, bias, how it is not finite)
FLOATS: dict[str, tuple[int, int, int, int, str]] = {
    "F64": (64, 11, 52, 1023, "ieee"),
    "F32": (32, 8, 23, 127, "ieee"),
    "F16": (16, 5, 10, 15, "ieee"),
    "BF16": (16, 8, 7, 127, "ieee"),
    "F8_E5M2": (8, 5, 2, 15, "ieee"),
    "F8_E4M3": (8, 4, 3, 7, "all ones"),
    "F8_E4M3FNUZ": (8, 4, 3, 8, "minus zero"),
    "F8_E5M2FNUZ": (8, 5, 2, 16, "minus zero"),
    "F8_E8M0": (8, 8, 0, 127, "all ones"),
    "F6_E2M3": (6, 2, 3, 1, "never"),
    "F6_E3M2": (6, 3, 2, 3, "never"),
    "F4": (4, 2, 1, 1, "never"),
}
INTEGERS: dict[str, tuple[int, bool]] = {
    "BOOL": (8, False),
    **{f"{sign}{bits}": (bits, sign == "I") for sign in "UI" for bits in (2, 4, 8, 16, 32, 64)},
}


def scalar_bits(name: str) -> int:
    return (FLOATS.get(name) or INTEGERS[name])[0]


# --- 1. Tensor digest


def tensor_digest(dtype: str, shape: tuple[int, ...], data: bytes) -> str:
    head = b"weightguard-tensor-v1\0" + dtype.encode("ascii") + b"\0"
    head += struct.pack(f"<Q{len(shape)}Q", len(shape), *shape)
    return "sha256:" + hashlib.sha256(head + data).hexdigest()


# --- 4. Rows and residues


def row_elements(dtype: str, shape: tuple[int, ...]) -> int:
    if 0 in shape:
        return 0
    row, left = 1, list(shape)
    while left and (row < MIN_ROW_ELEMENTS or row % DTYPES[dtype][0]):
        row *= left.pop()
    return row


def residues(words: list[int], first: int = 0) -> tuple[int, int]:
    return sum(words) & MASK64, sum(j * u for j, u in enumerate(words, first)) & MASK64


# --- 5. Range statistics


@dataclass(frozen=True)
class Scalar:
    """One scalar read: ``kind`` is finite, nan or inf; ``order`` sorts finite ones."""

    bits: int
    kind: str
    magnitude: int
    subnormal: bool
    value: float | int
    order: tuple[float | int, int]


def read_scalar(name: str, bits: int) -> Scalar:
    if name in INTEGERS:
        width, signed = INTEGERS[name]
        value = bits - (1 << width) if signed and bits >> (width - 1) else bits
        return Scalar(bits, "finite", abs(value), False, value, (value, 0))
    width, exponent_bits, mantissa_bits, bias, special = FLOATS[name]
    signed = exponent_bits + mantissa_bits < width
    negative = signed and bits >> (width - 1)
    magnitude = bits & ((1 << (width - 1)) - 1) if signed else bits
    exponent, mantissa = magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1)
    ones = (1 << exponent_bits) - 1
    kind = "finite"
    if special == "ieee" and exponent == ones:
        kind = "nan" if mantissa else "inf"
    if special == "all ones" and magnitude == (ones + 1 << mantissa_bits) - 1:
        kind = "nan"
    if special == "minus zero" and negative and magnitude == 0:
        kind = "nan"
    if kind != "finite":
        return Scalar(bits, kind, magnitude, False, 0.0, (0, 0))
    subnormal = signed and exponent == 0
    if subnormal:
        size = math.ldexp(mantissa, 1 - bias - mantissa_bits)
    else:
        size = math.ldexp((1 << mantissa_bits) | mantissa, exponent - bias - mantissa_bits)
    value = -size if negative else size
    return Scalar(bits, kind, magnitude, subnormal and magnitude > 0, value, (value, -negative))


def split_scalars(name: str, data: bytes) -> list[Scalar]:
    """Read scalars one after another, low bits of a byte first."""
    bits, whole = scalar_bits(name), int.from_bytes(data, "little")
    if bits >= 8:
        step = bits // 8
        cut = (data[i : i + step] for i in range(0, len(data) - step + 1, step))
        return [read_scalar(name, int.from_bytes(c, "little")) for c in cut]
    return [
        read_scalar(name, whole >> (i * bits) & ((1 << bits) - 1))
        for i in range(len(data) * 8 // bits)
    ]


def binary32(x: float) -> float:
    """Round to binary32, to nearest even; no sum of this page's binary32 lanes overflows."""
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def chunk_sums(name: str, chunk: list[Scalar]) -> tuple[float, float]:
    # binary64 rounds the exact sum or product of two binary32 numbers innocuously: rounded
    # again to binary32 it is what one rounding gives, as 53 >= 2 * 24 + 2
    greatest = max((abs(x.value) for x in chunk if x.kind == "finite"), default=0)
    in_range = greatest == 0 or 2.0**-40 <= greatest <= 2.0**60
    narrow = name in FLOATS and scalar_bits(name) <= 32 and in_range
    rounded = binary32 if narrow else float
    total, squares = [0.0] * LANES, [0.0] * LANES
    for i, scalar in enumerate(chunk):
        if scalar.kind == "finite":
            x = float(scalar.value)
            total[i % LANES] = rounded(total[i % LANES] + x)
            squares[i % LANES] = rounded(squares[i % LANES] + rounded(x * x))
    return fold(total), fold(squares)


def fold(lanes: list[float]) -> float:
    for h in (16, 8, 4, 2, 1):
        lanes = [lanes[i] + lanes[i + h] for i in range(h)]
    return lanes[0]


@dataclass
class Statistics:
    """Counts, extremes (as bits) and sums of some scalars, with row and column maxima."""

    finite: int = 0
    nan: int = 0
    inf: int = 0
    zero: int = 0
    subnormal: int = 0
    least: Scalar | None = None
    greatest: Scalar | None = None
    absmax: int = 0
    sum: float = 0.0
    sumsq: float = 0.0
    row_absmax: dict[int, int] = field(default_factory=dict)
    column_absmax: dict[int, int] = field(default_factory=dict)

    def count(self, scalar: Scalar, row: int, column: int) -> None:
        setattr(self, scalar.kind, getattr(self, scalar.kind) + 1)
        seen = scalar.magnitude if scalar.kind == "finite" else 0
        self.row_absmax[row] = max(self.row_absmax.get(row, 0), seen)
        self.column_absmax[column] = max(self.column_absmax.get(column, 0), seen)
        if scalar.kind != "finite":
            return
        self.zero += scalar.value == 0
        self.subnormal += scalar.subnormal
        self.extend(scalar)

    def extend(self, scalar: Scalar) -> None:
        self.absmax = max(self.absmax, scalar.magnitude)
        if self.least is None or scalar.order < self.least.order:
            self.least = scalar
        if self.greatest is None or scalar.order > self.greatest.order:
            self.greatest = scalar


def reported(total: float) -> float:
    limit = sys.float_info.max
    return 0.0 if math.isnan(total) else min(max(total, -limit), limit)


def scan_block(
    dtype: str, shape: tuple[int, ...], data: bytes, start: int, stop: int
) -> tuple[dict[int, tuple[int, int]], Statistics]:
    """Return residues by row of bytes start:stop, and statistics of the scalars they start."""
    elements, block_bytes, word_bytes, name, block_scalars = DTYPES[dtype]
    row_bytes = row_elements(dtype, shape) // elements * block_bytes
    rows: dict[int, tuple[int, int]] = {}
    at = start
    while at < stop:
        row = at // row_bytes
        end = min(stop, (row + 1) * row_bytes)
        words = [
            int.from_bytes(data[i : i + word_bytes], "little") for i in range(at, end, word_bytes)
        ]
        rows[row] = residues(words, (at - row * row_bytes) // word_bytes)
        at = end
    first, last = -(-start // block_bytes), -(-stop // block_bytes)
    scalars = split_scalars(name, data[first * block_bytes : last * block_bytes])
    row_scalars = row_bytes // block_bytes * block_scalars
    return rows, scan_scalars(name, scalars, first * block_scalars, row_scalars)


def scan_scalars(name: str, scalars: list[Scalar], first: int, row_scalars: int) -> Statistics:
    """Take the statistics of a block's scalars, the first being number ``first`` of the tensor."""
    result = Statistics()
    at = 0
    while at < len(scalars):
        row, place = divmod(first + at, row_scalars)
        piece = scalars[at : at + row_scalars - place]
        for column, scalar in enumerate(piece, place):
            result.count(scalar, row, column)
        for i in range(0, len(piece), CHUNK_SCALARS):
            total, squares = chunk_sums(name, piece[i : i + CHUNK_SCALARS])
            result.sum += total
            result.sumsq += squares
        at += len(piece)
    return result


# --- The whole page


@dataclass
class Fingerprint:
    """Everything the page defines, but for BLAKE3 and XXH3; rows and columns in order."""

    digest: str
    residues: list[tuple[int, int]]
    total: Statistics
    row_absmax: list[int]
    column_absmax: list[int] | None
    sum: float
    sumsq: float


def fingerprint(
    dtype: str, shape: tuple[int, ...], data: bytes, block_bytes: int = BLOCK_BYTES
) -> Fingerprint:
    """Fingerprint a tensor; other sizes of blocks than the page's serve tests on small inputs."""
    total, rows = Statistics(), dict[int, tuple[int, int]]()
    for start in range(0, len(data), block_bytes):
        stop = min(start + block_bytes, len(data))
        block_rows, statistics = scan_block(dtype, shape, data, start, stop)
        for row, (r, s) in block_rows.items():
            held = rows.get(row, (0, 0))
            rows[row] = ((held[0] + r) & MASK64, (held[1] + s) & MASK64)
        merge(total, statistics)
    has_columns = len(rows) >= 2 and len(total.column_absmax) <= MAX_COLUMNS
    return Fingerprint(
        tensor_digest(dtype, shape, data),
        [rows[row] for row in sorted(rows)],
        total,
        [total.row_absmax[row] for row in sorted(total.row_absmax)],
        [total.column_absmax[j] for j in sorted(total.column_absmax)] if has_columns else None,
        reported(total.sum),
        reported(total.sumsq),
    )


def merge(total: Statistics, block: Statistics) -> None:
    for name in ("finite", "nan", "inf", "zero", "subnormal", "sum", "sumsq"):
        setattr(total, name, getattr(total, name) + getattr(block, name))
    for scalar in filter(None, (block.least, block.greatest)):
        total.extend(scalar)
    for name in ("row_absmax", "column_absmax"):
        mine = getattr(total, name)
        for index, magnitude in getattr(block, name).items():
            mine[index] = max(mine.get(index, 0), magnitude)
