"""Glances: the bytes of tensors that stayed where they were, and nothing of those that did not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.integrations.torch.tiny_models import llama
from weightguard.guard import Glance, Token
from weightguard_integrations.torch.live import TorchAdapter

NAME = "model.layers.0.mlp.down_proj.weight"


def token(adapter: TorchAdapter, name: str = NAME) -> Token:
    described = adapter.describe(name)
    assert described is not None
    return described.token


def glanced(adapter: TorchAdapter, name: str = NAME) -> Glance:
    seen = adapter.glance(name, token(adapter, name))
    assert seen is not None
    return seen


def test_a_glance_is_what_a_reading_is() -> None:
    adapter = TorchAdapter(llama())
    for live in adapter.tensors():
        for _ in range(2):
            seen = adapter.glance(live.name, live.token)
            assert seen is not None, live.name
            assert seen.data.nbytes == live.nbytes
            assert seen.data == adapter.read(live.name, 0, live.nbytes), live.name
            assert seen.data.readonly


def test_a_glance_sees_what_is_written_behind_torchs_back() -> None:
    model = llama()
    adapter = TorchAdapter(model)
    known = token(adapter)
    adapter.glance(NAME, known)
    model.get_parameter(NAME).detach().view(torch.int16).numpy()[0, 3] ^= 1 << 9
    seen = adapter.glance(NAME, known)
    assert seen is not None
    assert seen.data == adapter.read(NAME, 0, seen.data.nbytes)


@torch.no_grad()
def add_in_place(model: nn.Module) -> None:
    model.get_parameter(NAME).add_(1)


def exchange_memory(model: nn.Module) -> None:
    weight = model.get_parameter(NAME)
    weight.data = weight.data.clone()


def transpose(model: nn.Module) -> None:
    weight = model.get_parameter(NAME)
    weight.data = weight.data.t()


def reinterpret(model: nn.Module) -> None:
    weight = model.get_parameter(NAME)
    weight.data = weight.data.view(torch.float16)


def exchange_parameter(model: nn.Module) -> None:
    module = model.get_submodule(NAME.rpartition(".")[0])
    module.weight = nn.Parameter(module.weight.detach())


def exchange_block(model: nn.Module) -> None:
    model.model.layers[0] = llama().model.layers[0]  # type: ignore[index, union-attr]


def delete_block(model: nn.Module) -> None:
    del model.model.layers[0]  # type: ignore[union-attr]
    del model.model.layers[0]  # type: ignore[union-attr]


def merge_adapter(model: nn.Module) -> None:
    model.get_submodule(NAME.rpartition(".")[0]).merged_adapters = ["lora"]  # type: ignore[assignment]


def give_memory_back(model: nn.Module) -> None:
    model.get_parameter(NAME).untyped_storage().resize_(0)


@pytest.mark.parametrize(
    "change",
    [
        add_in_place, exchange_memory, transpose, reinterpret, exchange_parameter, exchange_block,
        delete_block, merge_adapter, give_memory_back,
    ],
)  # fmt: skip
def test_what_moved_is_not_given(change: Callable[[nn.Module], None]) -> None:
    model = llama()
    adapter = TorchAdapter(model)
    known = token(adapter)
    kept = adapter.glance(NAME, known)
    assert kept is not None
    change(model)
    assert adapter.glance(NAME, known) is None


def test_a_new_token_is_learnt() -> None:
    model = llama()
    adapter = TorchAdapter(model)
    old = token(adapter)
    adapter.glance(NAME, old)
    exchange_memory(model)
    seen = glanced(adapter)
    assert seen.data == adapter.read(NAME, 0, seen.data.nbytes)
    assert adapter.glance(NAME, old) is None


def test_what_is_not_one_run_of_bytes_is_left_to_reading() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(4, 6).t(), requires_grad=False)
    module.empty = nn.Parameter(torch.ones(0), requires_grad=False)
    adapter = TorchAdapter(module)
    for name in ("weight", "empty"):
        assert adapter.glance(name, token(adapter, name)) is None
    assert adapter.glance("other", Token(0)) is None
    adapter = TorchAdapter(llama(), distant=True)
    assert adapter.glance(NAME, token(adapter)) is None


def test_what_was_glanced_at_is_kept_as_long_as_the_glance() -> None:
    model = llama()
    adapter = TorchAdapter(model)
    seen = glanced(adapter)
    storage = weakref.ref(model.get_parameter(NAME))
    before = bytes(seen.data)
    exchange_parameter(model)
    exchange_memory(model)
    gc.collect()
    assert storage() is None, "a sight does not keep its tensor alive"
    assert seen.data == before, "but a glance keeps its memory"
