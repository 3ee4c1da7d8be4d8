"""Inputs of the fingerprint vectors, made from a few words: same bytes on every machine."""

from __future__ import annotations

import hashlib
import math

# name -> (bits, exponent bits, mantissa bits, bias); formats without a row are integers
FLOATS = {
    "F64": (64, 11, 52, 1023),
    "F32": (32, 8, 23, 127),
    "F16": (16, 5, 10, 15),
    "BF16": (16, 8, 7, 127),
    "F8_E4M3": (8, 4, 3, 7),
    "F8_E5M2": (8, 5, 2, 15),
    "F8_E4M3FNUZ": (8, 4, 3, 8),
    "F8_E5M2FNUZ": (8, 5, 2, 16),
}
COMPLEX = {"C64": "F32", "C128": "F64"}

KINDS = ("bytes", "weights", "positive", "negative", "sparse", "tiny", "huge", "special")
"""bytes: random bits. weights: ordinary magnitudes, both signs. positive, negative: the same with
one sign. sparse: mostly zeros of both signs. tiny: near and below the least normal number.
huge: up to the greatest finite number. special: weights with a NaN, infinity, subnormal or
extreme bit pattern at every 97th place."""


def make(kind: str, dtype: str, nbytes: int, seed: int) -> bytes:
    """Return ``nbytes`` canonical bytes; kinds other than bytes need a float or complex dtype."""
    raw = hashlib.shake_128(f"{kind} {dtype} {nbytes} {seed}".encode()).digest(nbytes)
    name = COMPLEX.get(dtype, dtype)
    if kind == "bytes" or name not in FLOATS:
        return raw
    bits, exponent_bits, mantissa_bits, bias = FLOATS[name]
    width = bits // 8
    out = bytearray()
    for i in range(0, nbytes, width):
        u = int.from_bytes(raw[i : i + width], "little")
        u = _shape(kind, u, i // width, (bits, exponent_bits, mantissa_bits, bias))
        out += u.to_bytes(width, "little")
    return bytes(out)


def _shape(kind: str, u: int, i: int, layout: tuple[int, int, int, int]) -> int:
    bits, exponent_bits, mantissa_bits, bias = layout
    sign, mantissa = u & 1 << (bits - 1), u & (1 << mantissa_bits) - 1
    spread = (u >> 1) % 7
    if kind == "sparse" and i % 11:
        return sign
    if kind == "special" and i % 97 == 0:
        ones = (1 << exponent_bits) - 1
        patterns = (ones << mantissa_bits, (ones << mantissa_bits) | 1, (1 << bits - 1) - 1, 0, 1)
        return sign | patterns[i // 97 % len(patterns)]
    exponent = {
        "tiny": spread % 3,
        "huge": (1 << exponent_bits) - 2 - spread,
    }.get(kind, max(bias - 1 - spread, 0))
    if kind == "positive":
        sign = 0
    if kind == "negative":
        sign = 1 << (bits - 1)
    return sign | exponent << mantissa_bits | mantissa


def elements(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
