"""Kept weights: compared at each use, told, repaired, and never read outside the matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conformance.suite import codes
from weightguard.errors import IntegrityError
from weightguard_integrations.ternary import OnFault, PackedTernary
from weightguard_integrations.ternary.layers import TernaryLinear
from weightguard_integrations.torch import guard

KEPT = [(3, 7, 50.0), (20, 0, -8.5)]


def layer(on_fault: OnFault = "raise") -> TernaryLinear:
    weight = np.random.default_rng(2).integers(-1, 2, (24, 40), np.int8)
    for row, column, _ in KEPT:
        weight[row, column] = 0
    matrix = PackedTernary.from_int8(weight, 0.1, name="down")
    return TernaryLinear(matrix, kept=KEPT, on_fault=on_fault)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 40, generator=torch.Generator().manual_seed(1))


def damage(made: TernaryLinear, part: str, bit: int) -> None:
    if part == "value":
        made.weight.kept_value.view(torch.int32)[1] ^= 1 << bit
    else:
        made.weight.kept_index[1, bit % 2] ^= 1 << bit


DAMAGE = [*(("value", bit) for bit in range(31)), *(("index", bit) for bit in range(62))]


def test_every_flipped_bit_is_raised_before_use(x: torch.Tensor) -> None:
    """Places beyond the matrix among them: an index that torch would follow anywhere."""
    made = layer()
    expected = made(x)
    for part, bit in DAMAGE:
        damage(made, part, bit)
        with pytest.raises(IntegrityError, match="down"):
            made(x)
        damage(made, part, bit)
    assert torch.equal(made(x), expected)
    assert len(made.packed.incidents) == 2 * len(DAMAGE)


@pytest.mark.parametrize(("part", "bit"), [("value", 30), ("value", 0), ("index", 61)])
def test_repair_restores_what_was_kept(x: torch.Tensor, part: str, bit: int) -> None:
    made = layer("repair")
    expected = made(x)
    damage(made, part, bit)
    assert torch.equal(made(x), expected)
    assert made.weight.kept_value.tolist() == [50.0, -8.5]
    assert made.weight.kept_index.tolist() == [[3, 7], [20, 0]]
    product, stored = (incident.finding for incident in made.packed.incidents)
    assert (product.rule, stored.rule) == ("WG920", "WG921")
    assert product.evidence["disagreed"] == ["kept weights against their copy"]
    assert stored.evidence["changes"] == [{"kept": 1, "row": 20, "columns": [0]}]
    made(x)
    assert len(made.packed.incidents) == 2


def test_mark_and_recompute(x: torch.Tensor) -> None:
    made = layer("mark")
    damage(made, "value", 3)
    assert made(x).isnan().all()
    made.on_fault = "recompute"
    with pytest.raises(IntegrityError):
        made(x)


def test_a_damaged_copy_is_no_alarm(x: torch.Tensor) -> None:
    made = layer("repair")
    expected = made(x)
    kept = made.weight.kept
    assert kept is not None
    kept._compared._copy = bytes(len(kept._compared._copy))
    assert torch.equal(made(x), expected)
    assert not made.packed.incidents


def test_without_a_check_places_beyond_the_matrix_are_refused(x: torch.Tensor) -> None:
    made = layer()
    made.verify = "off"
    damage(made, "index", 60)
    with pytest.raises(ValueError, match="outside"):
        made(x)


def test_a_guard_hears_and_heals(x: torch.Tensor) -> None:
    made = layer()
    model = torch.nn.Sequential(made)
    expected = model(x)
    with guard(model, scrub=None, step_budget=0) as g:
        made.weight.kept_value.numpy().view(np.int32)[1] ^= 1 << 30
        with pytest.raises(IntegrityError):
            model(x)
        assert codes(g) == ["WG920", "WG921", "WG901", "WG907"]
        assert torch.equal(model(x), expected)


def test_casts_leave_them_in_float32(x: torch.Tensor) -> None:
    made = layer()
    expected = made(x)
    made.bfloat16()
    assert made.weight.kept_value.dtype == torch.float32
    assert torch.equal(made(x), expected)


@pytest.mark.parametrize(
    ("kept", "error", "words"),
    [
        ([(24, 0, 1.0)], ValueError, "does not have"),
        ([(0, -1, 1.0)], ValueError, "does not have"),
        ([(0, 0, 1.0), (0, 0, 2.0)], ValueError, "twice"),
        ([(0, 1, 1.0)], ValueError, "packed, too"),
        ([(0, 0, float("nan"))], ValueError, "finite"),
        ([(0, 0, 1e39)], ValueError, "finite"),
        ([(0.0, 0.5, 1.0)], TypeError, "whole numbers"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    kept: list[tuple[int, int, float]], error: type[Exception], words: str
) -> None:
    weight = np.zeros((24, 40), np.int8)
    weight[0, 1] = 1
    with pytest.raises(error, match=words):
        TernaryLinear(PackedTernary.from_int8(weight, 1.0), kept=kept)
