"""Declared casts: how live bytes follow from attested bytes of another dtype, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]


def _bf16_to_f32(data: Bytes) -> Bytes:
    return (data.view("<u2").astype("<u4") << np.uint32(16)).view(np.uint8)


def _f32_to_bf16(data: Bytes) -> Bytes:
    bits = data.view("<u4")
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, np.uint32(0x7FC0), rounded).astype("<u2").view(np.uint8)


def _converted(source: str, target: str) -> Callable[[Bytes], Bytes]:
    def cast(data: Bytes) -> Bytes:
        with np.errstate(over="ignore", invalid="ignore"):
            return data.view(source).astype(target).view(np.uint8)

    return cast


_f16_to_f32, _f32_to_f16 = _converted("<f2", "<f4"), _converted("<f4", "<f2")

CASTS: dict[tuple[str, str], Callable[[Bytes], Bytes]] = {
    ("BF16", "F32"): _bf16_to_f32,
    ("F16", "F32"): _f16_to_f32,
    ("F32", "BF16"): _f32_to_bf16,
    ("F32", "F16"): _f32_to_f16,
    ("BF16", "F16"): lambda data: _f32_to_f16(_bf16_to_f32(data)),
    ("F16", "BF16"): lambda data: _f32_to_bf16(_f16_to_f32(data)),
}
"""Casts by (attested, live) dtype: nearest, ties to even, as runtimes do them."""

_WIDENING = frozenset({("BF16", "F32"), ("F16", "F32")})


def narrower(live: str) -> tuple[str, ...]:
    """Return the dtypes that a live one may have been widened from."""
    return tuple(narrow for narrow, wide in sorted(_WIDENING) if wide == live)


def rounds(attested: str, live: str) -> bool:
    """Return whether a cast from one dtype to the other is declared, and may lose bits."""
    return (attested, live) in CASTS.keys() - _WIDENING


def undone(data: Bytes, attested: str, live: str) -> Bytes | None:
    """Return the attested bytes that a widening cast made live ``data`` of.

    None where the cast loses bits, so that there is no telling, or ``data`` is no result of it.
    """
    if attested == live:
        return data
    if (attested, live) not in _WIDENING:
        return None
    narrow = CASTS[live, attested](data)
    return narrow if np.array_equal(CASTS[attested, live](narrow), data) else None
