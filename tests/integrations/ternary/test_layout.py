"""The packed layout: vectors, the reference, and the places of bytes."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.reference import ternary as reference
from tests.vectors import ternary as vectors
from weightguard_integrations.ternary import PackedInt8, PackedTernary
from weightguard_integrations.ternary.place import Geometry

VECTORS = json.loads(vectors.TARGET.read_text())["vectors"]
KINDS = {True: PackedTernary, False: PackedInt8}


def test_the_reference_still_gives_the_vectors() -> None:
    assert vectors.render() == vectors.TARGET.read_text()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['coding']}-{v['shape']}")
def test_packing_gives_the_vectors(vector: dict[str, object]) -> None:
    ternary = vector["coding"] == "ternary"
    weight = vectors.weights(tuple(vector["shape"]), vector["seed"], ternary=ternary)
    matrix = KINDS[ternary].from_int8(weight, 1.0)
    assert matrix.packed.nbytes == vector["nbytes"]
    assert matrix.geometry.digits == vector["digits"]
    assert hashlib.sha256(matrix.packed.tobytes()).hexdigest() == vector["sha256"]


@given(
    ternary=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    shape=arrays.array_shapes(min_dims=2, max_dims=2, max_side=70),
)
@settings(max_examples=40)
def test_packing_equals_the_reference_and_unpacks(
    ternary: bool, seed: int, shape: tuple[int, int]
) -> None:
    low, high = (-1, 2) if ternary else (-128, 128)
    weight = np.random.default_rng(seed).integers(low, high, shape, np.int8)
    matrix = KINDS[ternary].from_int8(weight, 1.0)
    assert matrix.packed.tobytes() == reference.pack(weight, ternary=ternary)
    assert (matrix.unpack() == weight).all()


@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("rows", [16, 40, 64])
def test_check_rows_spell_the_check_vector(ternary: bool, rows: int) -> None:
    low, high = (-1, 2) if ternary else (-128, 128)
    weight = np.random.default_rng(3).integers(low, high, (rows, 35), np.int8)
    matrix = KINDS[ternary].from_int8(weight, 1.0)
    spelled = np.empty(35, np.int64)
    matrix._native.check_vector(spelled)
    weights = np.array([reference.row_weight(i) for i in range(rows)])
    assert (spelled == weights @ weight.astype(np.int64)).all()


@pytest.mark.parametrize("value", [-1, 1])
def test_many_equal_rows_need_a_second_group_of_check_rows_at_most(value: int) -> None:
    matrix = PackedTernary.from_int8(np.full((3000, 16), value, np.int8), 1.0)
    assert 1 <= matrix.geometry.all_groups - matrix.geometry.groups <= 2
    x = np.ones((1, 16), np.float32)
    assert (matrix.linear(x) == np.float32(value * 16 * 127) * np.float32(1 / 127)).all()


@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("shape", [(5, 20), (40, 33), (64, 48)])
def test_the_place_of_a_byte_is_where_its_weights_are(
    ternary: bool, shape: tuple[int, int]
) -> None:
    weight = np.zeros(shape, np.int8)
    matrix = KINDS[ternary].from_int8(weight, 1.0)
    before = matrix.unpack()
    seen = set()
    for offset in range(matrix.packed.nbytes):
        place = matrix.geometry.place(offset)
        seen.add((place.row, place.tile, place.columns))
        if offset % 7 or place.check:
            continue
        matrix.packed[offset] ^= 0xFF
        changed = np.argwhere(matrix.unpack() != before)
        expected = [[place.row, k] for k in place.columns] if place.row < shape[0] else []
        assert changed.tolist() == expected
        matrix.packed[offset] ^= 0xFF
    rows = matrix.geometry.all_groups * 16
    assert {row for row, *_ in seen} == set(range(rows))


def test_row_weights_are_odd_distinct_enough_and_below_the_bound() -> None:
    found = [reference.row_weight(row) for row in range(20_000)]
    assert all(weight % 2 and abs(weight) < 1 << 16 for weight in found)
    assert len(set(found)) > 15_000
    assert Geometry(True, 33, 20, 15).all_groups == 4
