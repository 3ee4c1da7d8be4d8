"""Writes ternary-layout-v1.json next to this file from the reference.

    python -m tests.vectors.ternary

Weights come from a linear congruential generator, so that any language can make them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.reference import ternary as reference

TARGET = Path(__file__).with_name("ternary-layout-v1.json")

SHAPES = ((1, 1), (1, 16), (16, 16), (17, 15), (31, 33), (32, 64), (33, 100), (48, 16), (100, 40))


def weights(shape: tuple[int, int], seed: int, *, ternary: bool) -> NDArray[np.int8]:
    """Return weights from s' = s * 1664525 + 1013904223 mod 2^32, by the upper 16 bits of s'."""
    state, values = seed, []
    for _ in range(shape[0] * shape[1]):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        values.append((state >> 16) % 3 - 1 if ternary else (state >> 16) % 256 - 128)
    return np.array(values, np.int8).reshape(shape)


def vector(shape: tuple[int, int], seed: int, *, ternary: bool) -> dict[str, Any]:
    weight = weights(shape, seed, ternary=ternary)
    packed = reference.pack(weight, ternary=ternary)
    return {
        "coding": "ternary" if ternary else "int8",
        "shape": shape,
        "seed": seed,
        "digits": reference.padded_rows(weight, ternary=ternary)[1],
        "nbytes": len(packed),
        "sha256": hashlib.sha256(packed).hexdigest(),
        "first_bytes": packed[:64].hex(),
    }


def render() -> str:
    """Return the JSON text, one vector a line."""
    found = [
        vector(shape, seed, ternary=ternary)
        for ternary in (True, False)
        for seed, shape in enumerate(SHAPES, 1)
    ]
    lines = ",\n".join(json.dumps(v, separators=(",", ":")) for v in found)
    return f'{{"specification":"ternary-layout-v1","vectors":[\n{lines}\n]}}\n'


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="ascii")
