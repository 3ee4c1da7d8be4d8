"""Weights that no guard reaches are counted, with their bytes where they can be known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from weightguard.guard import Gap
from weightguard_integrations.torch import guard
from weightguard_integrations.torch.live import TorchAdapter


def gaps(model: nn.Module) -> dict[str, Gap]:
    return {gap.name: gap for gap in TorchAdapter(model).gaps()}


@pytest.mark.filterwarnings("ignore")
def test_dynamically_quantised_modules_have_the_size_of_what_was_packed() -> None:
    model = nn.ModuleDict(
        {"linear": nn.Linear(100, 65), "plain": nn.Linear(9, 5), "lstm": nn.LSTM(60, 30)}
    )
    quantised = torch.ao.quantization.quantize_dynamic(model, {"linear", "lstm"}, dtype=torch.qint8)
    found = gaps(quantised)
    assert found["linear._packed_params._packed_params"].nbytes == 65 * 100 + 4 * 65
    (lstm,) = (gap for name, gap in found.items() if name.startswith("lstm"))
    assert lstm.nbytes == 4 * 30 * (60 + 30) + 2 * 4 * 4 * 30
    coverage = guard(quantised, scrub=None).coverage()
    assert coverage.unknown == 0
    assert coverage.trusted == 4 * (9 * 5 + 5)
    assert coverage.unreachable == sum(gap.nbytes or 0 for gap in found.values())
    assert coverage.ratio < 0.05


class Int8Weight(nn.Parameter):
    """As 8-bit libraries do: a parameter of a class of its own, with scales at it."""


class State:
    """And a state beside it, that kernels read."""


class Int8Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        data = torch.randint(-127, 127, (40, 64), dtype=torch.int8)
        self.weight = torch.Tensor._make_subclass(Int8Weight, data, False)
        self.weight.scales = torch.ones(40)
        self.register_buffer("zeros", torch.zeros(40, dtype=torch.int8))
        self.state = State()
        self.state.transposed = data.t().contiguous()
        self.state.same = data
        self.tables = {"codes": [torch.arange(16, dtype=torch.uint8)]}


def test_eight_bit_modules_are_counted_where_their_memory_is_hidden() -> None:
    model = nn.ModuleDict({"layer": Int8Linear()})
    found = gaps(model)
    sizes = {name: gap.nbytes for name, gap in found.items()}
    assert sizes.pop("layer.weight") == 40 * 64
    assert sizes.pop("layer.weight.scales") == 160
    assert sizes.pop("layer.state.transposed") == 40 * 64
    assert sizes.pop("layer.tables.codes.0") == 16
    assert sizes in ({}, {"layer.state.same": 40 * 64})  # the weight's own class hides its memory
    assert [t.name for t in TorchAdapter(model).tensors()] == ["layer.zeros"]


def test_plain_int8_buffers_are_guarded() -> None:
    model = nn.Module()
    model.register_buffer("codes", torch.randint(-127, 127, (40, 64), dtype=torch.int8))
    model.view = model.codes[3]
    assert gaps(model) == {}
    with guard(model, scrub=None, on_incident=["repair"]) as watched:
        model.codes.data.view(torch.uint8)[3, 5] ^= 4
        watched.check()
        assert [i.code for i in watched.incidents][-2:] == ["WG901", "WG907"]


def test_lists_of_parameters_are_no_gaps() -> None:
    assert gaps(nn.LSTM(8, 8)) == {}  # which keeps its weights in a list, too


def test_a_packed_object_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)))
    adapter = TorchAdapter(model)
    first = adapter.gaps()
    monkeypatch.setattr(torch.ScriptObject, "__getstate__", None, raising=False)
    assert list(adapter.gaps()) == list(first)
    assert first[0].nbytes == 8 * 8 + 4 * 8
