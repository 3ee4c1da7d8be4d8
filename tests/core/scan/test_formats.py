"""Scalar formats: decoding and order against the reference, pattern by pattern."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from tests.reference import fingerprint as reference
from weightguard.scan.formats import FORMATS, ScalarFormat
from weightguard.tensor import DTYPES


def patterns(form: ScalarFormat) -> list[int]:
    """Return every pattern of a short format, edges and a sample of a long one."""
    if form.bits <= 16:
        return list(range(1 << form.bits))
    draw = random.Random(form.name)
    edges = [b + d & form.mask for b in (0, form.sign_bit, form.least_normal) for d in (-1, 0, 1)]
    edges += [form.first_not_finite + d & form.mask for d in (-1, 0, 1)]
    return edges + [draw.getrandbits(form.bits) for _ in range(2000)]


def same(a: float, b: float) -> bool:
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def test_every_dtype_names_a_format() -> None:
    assert {d.scalar for d in DTYPES.values()} <= set(FORMATS)


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda f: f.name)
def test_every_pattern_reads_as_in_the_reference(form: ScalarFormat) -> None:
    bits = patterns(form)
    array = form.decode_array(np.array(bits, form.storage))
    for b, element in zip(bits, array.tolist(), strict=True):
        scalar = reference.read_scalar(form.name, b)
        value = form.decode(b)
        assert form.is_nan(b) is (scalar.kind == "nan"), hex(b)
        assert form.is_inf(b) is (scalar.kind == "inf"), hex(b)
        assert form.magnitude(b) == scalar.magnitude or scalar.kind == "nan", hex(b)
        if scalar.kind == "finite":
            assert same(value, scalar.value), hex(b)
            assert same(element, float(scalar.value)), hex(b)
        else:
            assert math.isnan(value) is math.isnan(element) is (scalar.kind == "nan")
            assert math.isinf(value) is math.isinf(element) is (scalar.kind == "inf")


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda f: f.name)
def test_order_keys_sort_like_values_with_minus_zero_below_zero(form: ScalarFormat) -> None:
    finite = [b for b in patterns(form) if reference.read_scalar(form.name, b).kind == "finite"]
    assert sorted(finite, key=form.order_key) == sorted(
        finite, key=lambda b: reference.read_scalar(form.name, b).order
    )


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda f: f.name)
def test_magnitudes_are_never_negative(form: ScalarFormat) -> None:
    finite = [b for b in patterns(form) if reference.read_scalar(form.name, b).kind == "finite"]
    magnitudes = np.array([form.magnitude(b) for b in finite], form.magnitude_dtype)
    expected = [abs(float(reference.read_scalar(form.name, b).value)) for b in finite]
    assert form.decode_magnitudes(magnitudes).tolist() == expected


@pytest.mark.parametrize(
    ("name", "bits", "value"),
    [
        ("F8_E4M3", 0x7E, 448.0),
        ("F8_E4M3", 0x01, 2.0**-9),
        ("F8_E5M2", 0x7B, 57344.0),
        ("F8_E4M3FNUZ", 0x7F, 240.0),
        ("F8_E5M2FNUZ", 0x7F, 57344.0),
        ("F8_E8M0", 0x00, 2.0**-127),
        ("F8_E8M0", 0xFE, 2.0**127),
        ("F6_E2M3", 0x1F, 7.5),
        ("F6_E3M2", 0x1F, 28.0),
        ("F4", 0x7, 6.0),
        ("F4", 0x9, -0.5),
        ("BF16", 0x3F80, 1.0),
        ("I4", 0x8, -8),
        ("I64", 1 << 63, -(2**63)),
        ("F64", 1, 5e-324),
    ],
)
def test_known_values(name: str, bits: int, value: float) -> None:
    assert FORMATS[name].decode(bits) == value
