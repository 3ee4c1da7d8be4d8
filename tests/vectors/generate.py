"""Writes fingerprint-v1.json next to this file from the reference.

    python -m tests.vectors.generate

Arrays are held as the SHA-256 of their little-endian 64-bit words, floats in hexadecimal.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.reference import fingerprint as reference
from tests.vectors import inputs

TARGET = Path(__file__).with_name("fingerprint-v1.json")

LENGTHS = (1, 31, 33, 63, 64, 65, 127, 129, 4095, 4096, 4097)
SHAPES = ((3, 64), (5, 68), (2, 4100), (9, 8, 3, 3), (4, 5, 7), (1, 2, 36), (40, 4))
HOT = ("BF16", "F16", "F32", "F8_E4M3", "F8_E5M2", "F64")
BLOCKS = (1 << 20, 4096, 1040)


def cases() -> Iterator[tuple[str, tuple[int, ...], str, int]]:
    """Yield dtype, shape, kind of input and block size; every dtype at every edge."""
    turn = 0
    for dtype, (block, *_) in reference.DTYPES.items():
        kinds = inputs.KINDS if dtype in inputs.FLOATS or dtype in inputs.COMPLEX else ("bytes",)
        shapes = [(-(-n // block) * block,) for n in LENGTHS]
        folded = [s for s in SHAPES if inputs.elements(s) % block == 0]
        shapes = shapes + folded if dtype in HOT else shapes[turn % 2 :: 2] + folded[:4]
        for shape in shapes:
            yield dtype, shape, kinds[turn % len(kinds)], BLOCKS[turn % len(BLOCKS)]
            turn += 1
        for kind in kinds if dtype in HOT else ():
            yield dtype, (3, 600), kind, BLOCKS[turn % len(BLOCKS)]
            turn += 1
    for dtype in HOT:
        yield dtype, (2, 8229), "weights", 4096


def vector(dtype: str, shape: tuple[int, ...], kind: str, block_bytes: int) -> dict[str, Any]:
    block, size, *_ = reference.DTYPES[dtype]
    seed = 1
    data = inputs.make(kind, dtype, inputs.elements(shape) // block * size, seed)
    result = reference.fingerprint(dtype, shape, data, block_bytes)
    total = result.total
    return {
        "dtype": dtype,
        "shape": shape,
        "kind": kind,
        "seed": seed,
        "block_bytes": block_bytes,
        "digest": result.digest,
        "rows": len(result.residues),
        "residues": pack(word for pair in result.residues for word in pair),
        "counts": [total.finite, total.nan, total.inf, total.zero, total.subnormal],
        "min": None if total.least is None else total.least.bits,
        "max": None if total.greatest is None else total.greatest.bits,
        "absmax": total.absmax,
        "row_absmax": pack(result.row_absmax),
        "column_absmax": None if result.column_absmax is None else pack(result.column_absmax),
        "sum": result.sum.hex(),
        "sumsq": result.sumsq.hex(),
    }


def pack(words: Iterable[int]) -> str:
    """Return the hexadecimal SHA-256 of unsigned integers as little-endian 64-bit words."""
    return hashlib.sha256(b"".join(struct.pack("<Q", word) for word in words)).hexdigest()


def render() -> str:
    """Return the JSON text, one vector a line."""
    lines = ",\n".join(json.dumps(vector(*case), separators=(",", ":")) for case in cases())
    return f'{{"specification":"fingerprint-v1","vectors":[\n{lines}\n]}}\n'


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="ascii")
