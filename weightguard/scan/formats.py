"""Scalar formats: how the bits that range statistics count are to be read.

Source: docs/spec/fingerprint-v1.md, section 5. A scalar's *bits* are an unsigned integer of
``storage`` width; its *magnitude bits* have the sign cleared (floats) or are the absolute value
(signed integers).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class Special(Enum):
    """Which bit patterns of a format are not finite numbers."""

    NONE = "every pattern is finite"
    IEEE = "exponent all ones: mantissa zero is infinity, else NaN"
    TOP = "exponent and mantissa all ones is NaN"
    NEGATIVE_ZERO = "the sign bit alone is NaN"
    ALL_ONES = "all bits one is NaN"


@dataclass(frozen=True, slots=True)
class ScalarFormat:
    """One format of ``bits`` bits; ``exponent``, ``mantissa``, ``bias`` are 0 for integers."""

    name: str
    bits: int
    is_float: bool
    signed: bool
    exponent: int = 0
    mantissa: int = 0
    bias: int = 0
    special: Special = Special.NONE

    @property
    def storage(self) -> np.dtype[np.unsignedinteger]:
        """The unsigned dtype that holds one scalar's bits or magnitude (8 bits at least)."""
        return np.dtype(f"u{max(self.bits // 8, 1)}")

    @property
    def magnitude_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The dtype of magnitude bits: that of the bits."""
        return self.storage

    @property
    def mask(self) -> int:
        """All bits of a scalar."""
        return (1 << self.bits) - 1

    @property
    def sign_bit(self) -> int:
        """The sign's bit, 0 for formats without one."""
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def has_zero(self) -> bool:
        """Whether magnitude bits 0 are the number zero; F8_E8M0 has no zero."""
        return not self.is_float or self.signed

    @property
    def first_not_finite(self) -> int:
        """The least magnitude bits that are not finite; above every magnitude where none is."""
        if self.special is Special.IEEE:
            return ((1 << self.exponent) - 1) << self.mantissa
        if self.special in (Special.TOP, Special.ALL_ONES):
            return self.mask & ~self.sign_bit
        return (self.mask & ~self.sign_bit) + 1

    @property
    def least_normal(self) -> int:
        """The least magnitude bits that are not subnormal; 1 where there are no subnormals."""
        return 1 << self.mantissa if self.is_float and self.signed else 1

    def hexadecimal(self, bits: int) -> str:
        """Return bits as manifests and reports write them: all digits of the format's width."""
        return f"0x{bits:0{max(1, self.bits // 4)}x}"

    def magnitude(self, bits: int) -> int:
        """Return the magnitude bits of one scalar's bits."""
        if not bits & self.sign_bit:
            return bits
        return bits ^ self.sign_bit if self.is_float else (1 << self.bits) - bits

    def is_nan(self, bits: int) -> bool:
        """Whether ``bits`` encode NaN."""
        if self.special is Special.NEGATIVE_ZERO:
            return bits == self.sign_bit
        if self.special is Special.IEEE:
            return bits & ~self.sign_bit > self.first_not_finite
        return self.is_float and bits & ~self.sign_bit >= self.first_not_finite

    def is_inf(self, bits: int) -> bool:
        """Whether ``bits`` encode an infinity."""
        return self.special is Special.IEEE and bits & ~self.sign_bit == self.first_not_finite

    def decode(self, bits: int) -> float | int:
        """Return the value of one scalar's bits: an int for integer formats."""
        if not self.is_float:
            return bits - (1 << self.bits) if bits & self.sign_bit else bits
        if self.is_nan(bits):
            return float("nan")
        magnitude = bits & ~self.sign_bit
        sign = -1.0 if bits & self.sign_bit else 1.0
        if self.is_inf(bits):
            return sign * float("inf")
        exponent, fraction = magnitude >> self.mantissa, magnitude & ((1 << self.mantissa) - 1)
        if exponent == 0 and self.signed:
            exponent = 1
        else:
            fraction |= 1 << self.mantissa
        return sign * math.ldexp(fraction, exponent - self.bias - self.mantissa)

    def decode_array(self, bits: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
        """Return the values of an array of scalar bits (64-bit integers round once)."""
        raw = np.ascontiguousarray(bits, dtype=self.storage)
        if self.bits <= 8:
            return _values_of_bytes(self)[raw]
        kind = "f" if self.is_float else "i" if self.signed else "u"
        with np.errstate(invalid="ignore"):  # a signalling NaN is no reason to warn
            if self.name == "BF16":
                raw = raw.astype(np.uint32) << np.uint32(16)
            return raw.view(f"{kind}{raw.itemsize}").astype(np.float64)

    def decode_magnitudes(self, bits: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
        """Return the values of an array of magnitude bits, never negative.

        Differs from ``decode_array`` for the most negative integer, whose magnitude bits are
        its own.
        """
        return np.abs(self.decode_array(bits))

    def order_key(self, bits: int) -> int:
        """Return an integer that orders finite scalars by value, with -0 below +0."""
        if not bits & self.sign_bit:
            return bits
        return ~(bits ^ self.sign_bit) if self.is_float else bits - (1 << self.bits)


@functools.cache
def _values_of_bytes(form: ScalarFormat) -> NDArray[np.float64]:
    return np.array([form.decode(b & form.mask) for b in range(256)], np.float64)


def _integer(name: str, bits: int, *, signed: bool) -> ScalarFormat:
    return ScalarFormat(name, bits, is_float=False, signed=signed)


def _float(
    name: str, bits: int, layout: tuple[int, int, int], special: Special, *, signed: bool = True
) -> ScalarFormat:
    return ScalarFormat(name, bits, True, signed, *layout, special)


FORMATS: dict[str, ScalarFormat] = {
    f.name: f
    for f in (
        _integer("BOOL", 8, signed=False),
        *(_integer(f"U{bits}", bits, signed=False) for bits in (2, 4, 8, 16, 32, 64)),
        *(_integer(f"I{bits}", bits, signed=True) for bits in (2, 4, 8, 16, 32, 64)),
        _float("F64", 64, (11, 52, 1023), Special.IEEE),
        _float("F32", 32, (8, 23, 127), Special.IEEE),
        _float("F16", 16, (5, 10, 15), Special.IEEE),
        _float("BF16", 16, (8, 7, 127), Special.IEEE),
        _float("F8_E4M3", 8, (4, 3, 7), Special.TOP),
        _float("F8_E5M2", 8, (5, 2, 15), Special.IEEE),
        _float("F8_E4M3FNUZ", 8, (4, 3, 8), Special.NEGATIVE_ZERO),
        _float("F8_E5M2FNUZ", 8, (5, 2, 16), Special.NEGATIVE_ZERO),
        _float("F8_E8M0", 8, (8, 0, 127), Special.ALL_ONES, signed=False),
        _float("F6_E2M3", 6, (2, 3, 1), Special.NONE),
        _float("F6_E3M2", 6, (3, 2, 3), Special.NONE),
        _float("F4", 4, (2, 1, 1), Special.NONE),
    )
}
"""Every format that ``DType.scalar`` names."""
