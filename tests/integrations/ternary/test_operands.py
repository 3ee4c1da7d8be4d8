"""Activations and outputs of every kind of memory: taken as what they are, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.integrations.ternary.test_products import equal, weights
from weightguard_integrations.ternary import OnFault, PackedTernary, operands
from weightguard_integrations.ternary.layers import TernaryLinear
from weightguard_integrations.ternary.operands import Memory


class Other(torch.Tensor):
    """A subclass of tensors, as frameworks make them."""


def named(value: Any) -> str:
    """A test's name; tensors whose memory is missing must not be printed."""
    return type(value).__name__ if isinstance(value, torch.Tensor) else str(value)[:20]


def resized(tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
    """The tensor with less memory than its shape needs, as sharding libraries leave it."""
    tensor.untyped_storage().resize_(nbytes)
    return tensor


BAD_X: list[tuple[Any, type[Exception], str]] = [
    (np.zeros((2, 41), np.float32), ValueError, "last dimension must be 40"),
    (np.float32(1), TypeError, "NumPy array"),
    (np.zeros((), np.float32), ValueError, "last dimension"),
    (np.zeros((2, 40), np.float64), TypeError, "float64"),
    (np.zeros((2, 40), np.int8), TypeError, "int8"),
    (np.zeros((2, 40), ">f4"), TypeError, "byte-swapped"),
    ([[0.0] * 40], TypeError, "list"),
    (torch.zeros(2, 40, device="meta"), TypeError, "meta"),
    (torch.zeros(2, 40).to_sparse(), TypeError, "dense"),
    (torch.zeros(2, 40).as_subclass(Other), TypeError, "Other, whose memory is not its own"),
    (torch.zeros(2, 40, dtype=torch.float64), TypeError, "float64"),
    (np.ma.array(np.zeros((2, 40), np.float32), mask=True), TypeError, "masked"),
    (resized(torch.zeros(2, 40), 0), ValueError, "0 bytes of memory"),
    (resized(torch.zeros(2, 40), 316), ValueError, "316 bytes of memory"),
    (resized(torch.zeros(40, 2).T, 16), ValueError, "16 bytes of memory"),
    (torch.nested.as_nested_tensor([torch.zeros(40)], layout=torch.strided), TypeError, "nested"),
]


@pytest.mark.parametrize(("x", "error", "words"), BAD_X, ids=named)
def test_wrong_activations_are_refused(x: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        PackedTernary.from_int8(np.zeros((3, 40), np.int8), 1.0).linear(x)


def read_only() -> np.ndarray:
    out = np.zeros((2, 3), np.float32)
    out.flags.writeable = False
    return out


BAD_OUT: list[tuple[Any, type[Exception], str]] = [
    (np.zeros((3, 2), np.float32), ValueError, "has shape"),
    (np.zeros((3, 2), np.float32).T, ValueError, "contiguous"),
    (np.zeros(25, np.uint8)[1:].view(np.float32).reshape(2, 3), ValueError, "aligned"),
    (read_only(), ValueError, "writable"),
    (np.zeros((2, 3), np.int32), TypeError, "int32"),
    (torch.zeros(3, 2).T, ValueError, "contiguous"),
    (torch.zeros(2, 3, requires_grad=True), ValueError, "gradient"),
    (resized(torch.zeros(2, 3), 0), ValueError, "0 bytes of memory"),
    (resized(torch.zeros(2, 3), 16), ValueError, "16 bytes of memory"),
    (torch._neg_view(torch.zeros(2, 3)), ValueError, "negated"),
    (torch.frombuffer(bytearray(25), dtype=torch.float32, offset=1).view(2, 3), ValueError, "al"),
]


@pytest.mark.parametrize("transform", ["vmap", "grad", "functionalize"])
def test_tensors_of_a_transform_are_refused(transform: str) -> None:
    matrix = PackedTernary.from_int8(np.zeros((3, 40), np.int8), 1.0)
    with pytest.raises(TypeError, match="belongs to a transform"):
        getattr(torch.func, transform)(matrix.linear)(torch.zeros(2, 40))


def test_negated_and_unaligned_tensors_are_read_as_what_they_are(rng: np.random.Generator) -> None:
    matrix = PackedTernary.from_int8(weights(rng, PackedTernary, (9, 21)), 1.0)
    x = torch.from_numpy(rng.standard_normal((2, 21), np.float32))
    assert torch.equal(matrix.linear(torch._neg_view(x)), matrix.linear(-x))
    shifted = torch.frombuffer(bytearray(2 * 21 * 4 + 1), dtype=torch.float32, offset=1)
    shifted.copy_(x.flatten())
    assert torch.equal(matrix.linear(shifted.view(2, 21)), matrix.linear(x))


OVERLAPS = {"same": (0, 400), "tail": (600, 1000), "head": (300, 700), "inside": (100, 500)}


@pytest.mark.parametrize("torched", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("place", OVERLAPS)
@pytest.mark.parametrize("on_fault", ["repair", "recompute"])
def test_outputs_over_the_activations_are_right_after_an_alarm(
    on_fault: OnFault, place: str, torched: bool, rng: np.random.Generator
) -> None:
    """The first, faulty product has written over x by the time of the second."""
    matrix = PackedTernary.from_int8(weights(rng, PackedTernary, (40, 64)), 0.5)
    room = rng.standard_normal(1040, np.float32)
    start, stop = OVERLAPS[place]
    x, out = room[200:840].reshape(10, 64), room[start + 40 : stop + 40].reshape(10, 40)
    expected = matrix.linear(x.copy())
    if on_fault == "repair":
        matrix.packed[3] ^= 1
    given = [torch.from_numpy(a) for a in (x, out)] if torched else [x, out]
    y = matrix.linear(
        given[0], out=given[1], on_fault=on_fault,
        drills=((1, 0, 3, 1 << 5),) if on_fault == "recompute" else (),
    )  # fmt: skip
    assert equal(np.asarray(y), expected)
    assert matrix.incidents


@pytest.mark.parametrize("torched", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize("part", ["packed bytes", "check rows", "scales", "kept weights", "bias"])
def test_outputs_over_what_products_read_are_refused(part: str, torched: bool) -> None:
    """Before a byte is written: the product after it is right and raises no alarm."""
    matrix = PackedTernary.from_int8(np.zeros((16, 64), np.int8), np.ones(16), name="up")
    kept = [(row, 0, 1.0) for row in range(16)]
    layer = TernaryLinear(matrix, kept=kept, bias=torch.ones(16))
    assert layer.bias is not None
    memory = {
        "packed bytes": matrix.packed[:64],
        "check rows": matrix.packed[-64:],
        "scales": matrix.scales,
        "kept weights": layer.weight.kept_value.numpy(),
        "bias": layer.bias.numpy(),
    }[part]
    out, before = memory.view(np.float32).reshape(1, 16), memory.tobytes()
    expected = "packed bytes" if part == "check rows" else part
    with pytest.raises(ValueError, match=f"out lies over the {expected} of 'up'"):
        matrix.linear(np.ones((1, 64), np.float32), torch.from_numpy(out) if torched else out)
    assert memory.tobytes() == before
    assert (layer(torch.ones(1, 64)) == 2).all()
    assert not matrix.incidents


@pytest.mark.parametrize("shift", [-4, 4])
def test_outputs_beside_that_memory_are_taken_and_over_its_edge_are_not(shift: int) -> None:
    room = np.zeros(12, np.float32)
    matrix = PackedTernary.from_int8(np.zeros((4, 64), np.int8), np.ones(4))
    matrix.reads(Memory("neighbour", room[4:8]))
    x = np.ones((1, 64), np.float32)
    matrix.linear(x, room[4 + shift : 8 + shift].reshape(1, 4))
    start = 4 + shift // 4
    with pytest.raises(ValueError, match="out lies over the neighbour"):
        matrix.linear(x, room[start : start + 4].reshape(1, 4))


@pytest.mark.parametrize(("out", "error", "words"), BAD_OUT, ids=named)
def test_wrong_outputs_are_refused(out: Any, error: type[Exception], words: str) -> None:
    matrix = PackedTernary.from_int8(np.zeros((3, 40), np.int8), 1.0)
    with pytest.raises(error, match=words):
        matrix.linear(np.zeros((2, 40), np.float32), out=out)


def test_odd_strides_and_addresses_are_copied(rng: np.random.Generator) -> None:
    weight = weights(rng, PackedTernary, (9, 21))
    matrix = PackedTernary.from_int8(weight, 1.0)
    x = rng.standard_normal((6, 21), np.float32)
    room = np.zeros(x.nbytes + 1, np.uint8)
    shifted = room[1:].view(np.float32).reshape(x.shape)
    shifted[:] = x
    expected = matrix.linear(x)
    assert equal(matrix.linear(shifted), expected)
    assert equal(matrix.linear(np.asfortranarray(x)), expected)
    assert equal(matrix.linear(x[::-2]), expected[::-2])


def test_ordinary_tensors_are_told_by_their_dispatch_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("an ordinary tensor is asked for more than it need be")

    monkeypatch.setattr(operands, "_require_dense", refuse)
    matrix, x = PackedTernary.from_int8(np.ones((3, 8), np.int8), 1.0), torch.ones(4, 8)
    with torch.inference_mode():
        inferred = torch.ones(4, 8)
    for tensor in (x, x[1:], torch.nn.Parameter(x), x.bfloat16(), x.t().contiguous().t(), inferred):
        assert (matrix.linear(tensor) == 8).all()
    with pytest.raises(AssertionError):
        matrix.linear(torch.ones(4, 8).to_sparse())
