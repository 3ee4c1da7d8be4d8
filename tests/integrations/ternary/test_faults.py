"""What an alarm leads to: localised, repaired, recomputed, marked or raised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks import ternary_faults
from weightguard.errors import IntegrityError
from weightguard_integrations.ternary import PackedInt8, PackedMatrix, PackedTernary

ACTIVATION, ACCUMULATOR, TOKEN_SCALE = range(3)


@pytest.fixture(params=[PackedTernary, PackedInt8])
def matrix(request: pytest.FixtureRequest, rng: np.random.Generator) -> PackedMatrix:
    weight = rng.integers(-1, 2, (100, 70), np.int8)
    scales = rng.random(100, np.float32) + np.float32(0.1)
    packed: PackedMatrix = request.param.from_int8(weight, scales, name="layer.3.up")
    return packed


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((5, 70), np.float32)


def weight_byte(matrix: PackedMatrix, row: int, column: int) -> int:
    for offset in range(matrix.packed.nbytes):
        place = matrix.geometry.place(offset)
        if place.row == row and column in place.columns:
            return offset
    raise AssertionError


def action(matrix: PackedMatrix) -> str:
    """What was done about the last product that alarmed."""
    products = [i.finding for i in matrix.incidents if i.code == "WG920"]
    return str(products[-1].evidence["action"])


def test_a_flipped_weight_is_localised_and_raised(matrix: PackedMatrix, x: np.ndarray) -> None:
    matrix.packed[weight_byte(matrix, 37, 21)] ^= 1
    out = np.zeros((5, 100), np.float32)
    with pytest.raises(IntegrityError) as raised:
        matrix.linear(x, out=out)
    assert np.isnan(out).any(axis=1).all()
    rules = {f.rule: f for f in raised.value.report.findings}
    assert set(rules) == {"WG920", "WG921"}
    assert rules["WG921"].location.tensor == "layer.3.up"
    (change,) = rules["WG921"].evidence["changes"]
    assert change["row"] == 37 == rules["WG920"].location.row
    assert 21 in change["columns"]
    assert change["old"] ^ change["new"] == 1
    assert change["confirmed"]
    assert change["tile"] == rules["WG920"].evidence["tile"]
    product, stored = matrix.incidents
    assert (product.code, stored.code, stored.cause) == ("WG920", "WG921", product.number)
    assert action(matrix) == "raised"
    assert product.finding.evidence["tokens"] == [0, 1, 2, 3, 4]


def test_repair_restores_the_bytes_and_the_outputs(matrix: PackedMatrix, x: np.ndarray) -> None:
    expected, before = matrix.linear(x), matrix.packed.copy()
    for row in (3, 37, 99):  # one byte in each of several groups
        matrix.packed[weight_byte(matrix, row, 21)] ^= 3
    assert (matrix.linear(x, on_fault="repair") == expected).all()
    assert (matrix.packed == before).all()
    assert action(matrix) == "repaired"
    assert matrix.check().findings == ()


def test_damage_beyond_residues_needs_the_golden_copy(rng: np.random.Generator) -> None:
    weight = rng.integers(-1, 2, (64, 64), np.int8)
    x = rng.standard_normal((2, 64), np.float32)
    for golden in (False, True):
        matrix = PackedTernary.from_int8(weight, 1.0, golden=golden)
        expected = matrix.linear(x)
        matrix.packed[:200] ^= 0x55
        damaged = matrix.packed.copy()
        if golden:
            assert (matrix.linear(x, on_fault="repair") == expected).all()
        else:
            with pytest.raises(IntegrityError):
                matrix.linear(x, on_fault="repair")
            assert (matrix.packed == damaged).all(), "nothing unconfirmed is written"


def test_flipped_scales_are_restored(matrix: PackedMatrix, x: np.ndarray) -> None:
    expected = matrix.linear(x)
    matrix.scales.view(np.uint32)[7] ^= 1 << 30
    with pytest.raises(IntegrityError) as raised:
        matrix.linear(x)
    (change,) = raised.value.report.findings[1].evidence["changes"]
    assert (change["row"], change["old"] ^ change["new"]) == (7, 1 << 30)
    assert (matrix.linear(x, on_fault="repair") == expected).all()
    assert matrix.check().findings == ()


def test_recomputing_stored_damage_raises(matrix: PackedMatrix, x: np.ndarray) -> None:
    matrix.packed[weight_byte(matrix, 0, 0)] ^= 1
    with pytest.raises(IntegrityError):
        matrix.linear(x, on_fault="recompute")


@pytest.mark.parametrize(
    ("drill", "disagreed"),
    [
        ((ACTIVATION, 2, 33, 0x40), "activations against their seal"),
        ((ACCUMULATOR, 2, 50, 1 << 31), "outputs against the check rows"),
        ((ACCUMULATOR, 2, 50, 1), "outputs against the check rows"),
        ((TOKEN_SCALE, 2, 0, 1 << 23), "token scale against its copy"),
    ],
)
def test_a_passing_fault_is_computed_again(
    matrix: PackedMatrix, x: np.ndarray, drill: tuple[int, int, int, int], disagreed: str
) -> None:
    expected = matrix.linear(x)
    assert (matrix.linear(x, on_fault="recompute", drills=(drill,)) == expected).all()
    (incident,) = matrix.incidents
    assert action(matrix) == "recomputed"
    assert disagreed in incident.finding.evidence["disagreed"]
    assert 2 in incident.finding.evidence["tokens"]


def test_marking_writes_nan_over_the_tokens_concerned_only(
    matrix: PackedMatrix, x: np.ndarray
) -> None:
    expected = matrix.linear(x)
    y = matrix.linear(x, on_fault="mark", drills=((ACCUMULATOR, 3, 8, 4),))
    assert np.isnan(y[3]).all()
    assert (np.delete(y, 3, 0) == np.delete(expected, 3, 0)).all()
    assert action(matrix) == "marked"


def test_opposite_changes_of_two_activations_do_not_cancel(matrix: PackedMatrix) -> None:
    """The all-ones row alone would not see them: their sum is as before."""
    x = np.zeros((1, 70), np.float32)
    x[0, :3] = 127, 2, 4
    drills = ((ACTIVATION, 0, 1, 6), (ACTIVATION, 0, 2, 6))  # 2 and 4 change places
    with pytest.raises(IntegrityError):
        matrix.linear(x, drills=drills)


def test_without_verification_nothing_alarms(matrix: PackedMatrix, x: np.ndarray) -> None:
    expected = matrix.linear(x)
    matrix.packed[weight_byte(matrix, 37, 21)] ^= 1
    wrong = np.flatnonzero((matrix.linear(x, verify="off") != expected).any(axis=0))
    assert wrong.tolist() == [37]
    assert not matrix.incidents


def test_a_silent_flip_gives_right_outputs_and_the_check_finds_it(matrix: PackedMatrix) -> None:
    x = np.zeros((1, 70), np.float32)
    x[0, 5] = 1
    expected = matrix.linear(x)
    matrix.packed[weight_byte(matrix, 10, 22)] ^= 1
    assert (matrix.linear(x) == expected).all()
    (found,) = matrix.check().findings
    assert found.rule == "WG921"
    assert matrix.repair().findings == ()


def test_every_bit_of_a_small_matrix(isa: str) -> None:
    """Each flip in packed bytes is found by the check, and by the product if it changes it."""
    rng = np.random.default_rng(11)
    matrix = PackedTernary.from_int8(rng.integers(-1, 2, (18, 20), np.int8), 1.0)
    x = rng.choice([-1, 0.5, 1], (1, 20)).astype(np.float32)
    expected = matrix.linear(x)
    for bit in range(8 * matrix.packed.nbytes):
        matrix.packed[bit // 8] ^= 1 << bit % 8
        y = matrix.linear(x, on_fault="mark")
        assert np.isnan(y).all() or (y == expected).all()
        if bit % 16 == 0:
            assert matrix.check().findings
        matrix.packed[bit // 8] ^= 1 << bit % 8
    assert matrix.check().findings == ()


@pytest.mark.proof
def test_fault_campaign(isa: str, claim: Callable[[str], None]) -> None:
    size = (300, 120, 2_000) if isa == "scalar" else (6_000, 2_400, 50_000)
    tally = ternary_faults.campaign(*size)
    claim(
        f"ternary {isa}: {tally.missed} of {sum(tally.faults.values())} faults missed, "
        f"{tally.false_alarms} false alarms in {tally.clean} clean products"
    )
    assert tally.sound
    assert sum(tally.silent.values()) > 0
    assert all(tally.wrong[site] for site in ternary_faults.SITES if site != "check rows")
