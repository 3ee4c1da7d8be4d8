"""A layer's bias: added in full precision, compared at each use, told and repaired."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.conformance.suite import codes
from weightguard.errors import IntegrityError
from weightguard_integrations.ternary import OnFault, PackedTernary
from weightguard_integrations.ternary.layers import TernaryLinear
from weightguard_integrations.torch import guard

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def layer(on_fault: OnFault = "raise", dtype: torch.dtype = torch.float32) -> TernaryLinear:
    weight = np.random.default_rng(2).integers(-1, 2, (24, 40), np.int8)
    matrix = PackedTernary.from_int8(weight, 0.1, name="up")
    bias = torch.randn(24, generator=torch.Generator().manual_seed(3)).to(dtype)
    return TernaryLinear(matrix, bias=bias, on_fault=on_fault)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 40, generator=torch.Generator().manual_seed(1))


def flip(made: TernaryLinear, row: int, bit: int) -> None:
    assert made.bias is not None
    size = made.bias.itemsize
    live = made.bias.view(torch.uint8).numpy()  # beneath torch, which would count a write
    live[row * size + bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_it_is_added_and_rounded_once(
    given: torch.dtype, dtype: torch.dtype, x: torch.Tensor
) -> None:
    made = layer(dtype=given)
    y = made(x.to(dtype))
    exact: torch.Tensor = made.packed.linear(x.to(dtype)).float()
    assert y.dtype == dtype
    assert made.bias is not None
    assert made.bias.dtype == given
    assert torch.equal(y, (exact + made.bias.float()).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_is_raised(dtype: torch.dtype, x: torch.Tensor) -> None:
    made = layer(dtype=dtype)
    expected = made(x)
    places = [(row, bit) for row in (0, 23) for bit in range(8 * dtype.itemsize)]
    for row, bit in places:
        flip(made, row, bit)
        with pytest.raises(IntegrityError, match="up"):
            made(x)
        flip(made, row, bit)
    assert torch.equal(made(x), expected)
    assert len(made.packed.incidents) == 2 * len(places)


def test_repair_restores_it_and_says_where(x: torch.Tensor) -> None:
    made = layer("repair")
    expected = made(x)
    flip(made, 7, 30)
    assert torch.equal(made(x), expected)
    product, stored = (incident.finding for incident in made.packed.incidents)
    assert (product.rule, stored.rule) == ("WG920", "WG921")
    assert product.evidence["disagreed"] == ["bias against its copy"]
    assert (stored.location.row, stored.evidence["changes"]) == (7, [{"row": 7}])
    assert stored.message == "the bias changed since the layer was made"
    made(x)
    assert len(made.packed.incidents) == 2


def test_mark_recompute_and_off(x: torch.Tensor) -> None:
    made = layer("mark")
    flip(made, 0, 3)
    assert made(x).isnan().all()
    made.on_fault = "recompute"
    with pytest.raises(IntegrityError):
        made(x)
    made.verify = "off"
    assert made.bias is not None
    assert torch.equal(made(x), made.packed.linear(x) + made.bias)


def test_a_guard_hears_and_heals(x: torch.Tensor) -> None:
    model = torch.nn.Sequential(layer())
    expected = model(x)
    with guard(model, scrub=None, step_budget=0) as g:
        assert "0.bias" in g.baseline.tensors
        flip(model[0], 5, 30)
        with pytest.raises(IntegrityError):
            model(x)
        assert codes(g) == ["WG920", "WG921", "WG901", "WG907"]
        assert torch.equal(model(x), expected)


def test_casts_moves_and_the_source_leave_it_alone(x: torch.Tensor) -> None:
    source = torch.nn.Linear(40, 24)
    made = TernaryLinear.from_linear(source)
    expected = made(x)
    for move in (made.bfloat16, made.share_memory, lambda: made.to("meta"), source.bias.data.zero_):
        move()
        assert torch.equal(made(x), expected)
        flip(made, 2, 1)  # the buffer is what is read
        with pytest.raises(IntegrityError):
            made(x)
        flip(made, 2, 1)


def test_another_tensor_in_its_place_is_refused() -> None:
    """It would not be what is read."""
    made = layer()
    with pytest.raises(AttributeError, match="make another layer"):
        made.bias = torch.zeros(24)


def test_a_deep_copy_has_its_own(x: torch.Tensor) -> None:
    made = layer()
    expected = made(x)
    copied = copy.deepcopy(torch.nn.Sequential(made))[0]
    flip(made, 4, 20)
    assert torch.equal(copied(x), expected)
    flip(copied, 4, 20)
    with pytest.raises(IntegrityError):
        copied(x)
    with pytest.raises(IntegrityError):
        copy.deepcopy(made)


@pytest.mark.parametrize(
    ("bias", "error", "words"),
    [
        (torch.ones(8), ValueError, "bias has shape"),
        (torch.ones(4, dtype=torch.int32), TypeError, "bias is int32"),
        (torch.ones(4, device="meta"), TypeError, "meta"),
    ],
)
def test_what_is_no_bias_is_refused(bias: torch.Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TernaryLinear(PackedTernary.from_int8(np.ones((4, 8), np.int8), 1.0), bias=bias)
