"""The guard is called once a forward pass: eager or compiled, attached before or after."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from weightguard_integrations.torch.entrance import Entrance
from weightguard_integrations.torch.live import root_of


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


class Calls:
    def __init__(self) -> None:
        self.count = 0
        self.fault: Exception | None = None

    def __call__(self) -> None:
        self.count += 1
        if self.fault:
            raise self.fault


BACKENDS = ["eager", "aot_eager", "inductor"]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("make", [Model, chain])
@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_compiled_model_calls_once_a_pass_and_its_graph_stays_whole(
    make: Callable[[], nn.Module], backend: str, when: str
) -> None:
    model, calls, x = make(), Calls(), torch.randn(2, 8)
    expected = model(x)
    if when == "before":
        entrance = Entrance(model, model, calls)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    if when == "after":
        compiled(x)
    if when != "before":
        entrance = Entrance(compiled, root_of(compiled), calls)
    for number in range(1, 4):
        with torch.inference_mode():
            torch.testing.assert_close(compiled(x), expected)
        assert calls.count == number
    entrance.remove()
    compiled(x)
    model(x)
    assert calls.count == 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_model_compiled_in_place(when: str) -> None:
    model, calls, x = Model(), Calls(), torch.randn(2, 8)
    if when == "before":
        Entrance(model, model, calls)
        kept = model
    model.compile(fullgraph=True, backend="aot_eager")
    if when == "after":
        model(x)
        kept = Entrance(model, model, calls)
    for number in range(1, 4):
        model(x)
        assert calls.count == number
    assert kept is not None


def test_inductor_keeps_the_call_and_what_it_raises() -> None:
    model, calls, x = Model(), Calls(), torch.randn(2, 8)
    entrance = Entrance(model, model, calls)
    compiled = torch.compile(model, fullgraph=True)
    # plain kernels compile in less than half the time, and the guard is not in them
    with torch._inductor.config.patch({"cpp.vec_isa_ok": False}), torch.no_grad():
        compiled(x)
        calls.fault = ValueError("stop")
        with pytest.raises(ValueError, match="stop"):
            compiled(x)
        calls.fault = None
        compiled(x)
    assert calls.count == 3
    entrance.remove()


def test_eager_calls_of_the_wrapped_model_count_too() -> None:
    model, calls, x = Model(), Calls(), torch.randn(2, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    entrance = Entrance(compiled, model, calls)
    model(x)
    compiled(x)
    model(x)
    assert calls.count == 3
    entrance.remove()


def test_first_guards_in_several_threads_register_one_operation() -> None:
    program = """
import threading, torch
from torch import nn
from weightguard_integrations.torch import guard
start, made = threading.Barrier(4), []
def make():
    start.wait()
    made.append(guard(nn.Linear(64, 64), canary=None, scrub=None).start())
threads = [threading.Thread(target=make) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(made))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["4"], done.stderr
