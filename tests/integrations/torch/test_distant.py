"""A device's memory: sums where the weights lie, no bytes to the host, no waiting in a pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.integrations.torch.tiny_models import llama, saved
from weightguard import fingerprint
from weightguard.guard import Guard, Pinned, Settings
from weightguard.scan.digest import BLOCK_BYTES
from weightguard_integrations.torch.distant import Answer
from weightguard_integrations.torch.live import TorchAdapter

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; none is here"
)


class Slow(Answer[np.ndarray]):
    """An answer that is on its way until the device is done."""

    done = False

    def ready(self) -> bool:
        return Slow.done

    def result(self) -> np.ndarray:
        assert Slow.done, "a forward pass waited for the device"
        return super().result()


class Watched(TorchAdapter):
    """Counts the bytes that are read, and answers as slowly as a test wants."""

    def __init__(self, model: nn.Module, *, slow: bool = False):
        super().__init__(model, distant=True)
        self.bytes_read, self.asked, self.slow = 0, 0, slow

    def read(self, name: str, start: int, stop: int) -> memoryview:
        self.bytes_read += stop - start
        return super().read(name, start, stop)

    def sums(self, name: str, start: int, stop: int, secret: np.ndarray) -> Answer[np.ndarray]:
        self.asked += 1
        answer = super().sums(name, start, stop, secret)
        if not self.slow:
            return answer
        return Slow(answer.source, answer.host, None, answer.convert)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(5)
    made = nn.Sequential(nn.Linear(1500, 900), nn.Linear(900, 301)).bfloat16()
    return made.requires_grad_(False)


def rules(guard: Guard) -> list[str]:
    return [incident.code for incident in guard.incidents if incident.code != "WG910"]


def poke(tensor: torch.Tensor, element: int, bits: int) -> None:
    """Flip bits of a 16-bit element without a new version."""
    tensor.data.view(-1).view(torch.int16)[element] ^= bits


def test_checking_copies_nothing_and_damage_one_block(model: nn.Module) -> None:
    adapter = Watched(model)
    guard = Guard(adapter, settings=Settings(on_incident=["repair"]))
    assert guard.check().complete
    assert adapter.bytes_read == 0
    assert adapter.asked == 2 * len(adapter.tensors())
    before = model[0].weight.clone()
    poke(model[0].weight, 600_000, 1 << 14)
    guard.check()
    assert rules(guard) == ["WG901", "WG907"]
    (element,) = guard.incidents[-2].finding.evidence["elements"]
    assert element["index"] == [400, 0]
    assert adapter.bytes_read <= 2 * BLOCK_BYTES
    assert torch.equal(before, model[0].weight)


def test_a_change_that_leaves_the_residues_is_found_by_the_secret_sum(model: nn.Module) -> None:
    adapter = Watched(model)
    guard = Guard(adapter, settings=Settings(on_incident=[]))
    row = model[0].weight.data.view(torch.int16)[7]
    places = [k for k in range(1400) if all(0 < row[k + i] < 30000 for i in range(3))]
    for by, at in ((1, 0), (-2, 1), (1, 2)):  # sum and weighted sum stay as they are
        row[places[0] + at] += by
    guard.check()
    assert rules(guard) == ["WG901"]
    assert "not show" in guard.incidents[-1].finding.message


def test_no_forward_pass_waits(model: nn.Module) -> None:
    adapter = Watched(model)
    guard = Guard(adapter, settings=Settings(on_incident=[], step_bytes=1 << 30))
    adapter.slow, Slow.done = True, False
    guard.step()
    asked = adapter.asked
    for _ in range(3):
        guard.step()
    assert adapter.asked == asked  # no more until these are there
    assert guard.status().last_full_pass is None
    poke(model[1].weight, 5, 1)
    Slow.done = True
    guard.step()  # judges what was asked for before the flip
    assert guard.status().last_full_pass is not None
    assert rules(guard) == []
    adapter.slow = False
    guard.step()
    guard.step()
    assert rules(guard) == ["WG901"]


def test_what_was_asked_before_an_update_is_not_judged_by_what_came_after(model: nn.Module) -> None:
    guard = Guard(Watched(model), settings=Settings(on_incident=[], step_bytes=1 << 30))
    guard.pin([Pinned("1.weight", 10, 12)])
    guard.step()
    with guard.update():
        model[0].weight.mul_(2)
        del model[1]
        model.append(nn.Linear(900, 7).bfloat16())
    for _ in range(3):
        guard.step()
    assert rules(guard) == ["WG903"]
    poke(model[0].weight, 5, 4)
    guard.step()
    guard.step()
    assert rules(guard) == ["WG903", "WG901"]


def test_pinned_bytes_are_compared_a_pass_later(model: nn.Module) -> None:
    guard = Guard(Watched(model), settings=Settings(on_incident=[]))
    guard.pin([Pinned("1.weight", 10, 12)])
    guard.step()
    poke(model[1].weight, 5, 4)
    guard.step()
    assert rules(guard) == []
    guard.step()
    assert rules(guard) == ["WG901"]


def test_sealing_copies_once_for_the_manifest(tmp_path: Path) -> None:
    model = llama()
    folder = saved(model, tmp_path)
    with fingerprint(folder) as manifest:
        adapter = Watched(model.eval())
        guard = Guard(adapter, manifest, Settings(on_incident=[]))
        coverage = guard.coverage()
        assert coverage.attested == sum(p.nbytes for p in model.parameters())
        assert adapter.bytes_read == coverage.attested
        poke(model.lm_head.weight, 77, 2)
        found = Guard(Watched(model), manifest, Settings(on_incident=[])).incidents[0]
        assert (found.code, found.finding.location.tensor) == ("WG401", "lm_head.weight")


def test_memory_that_moves_to_a_device_is_another_tensor(model: nn.Module) -> None:
    adapter = TorchAdapter(model)
    guard = Guard(adapter, settings=Settings(on_incident=[]))
    adapter._distant = True
    guard.check()
    assert set(rules(guard)) == {"WG914"}


@needs_gpu
def test_a_flip_in_gpu_memory_is_found_located_and_repaired() -> None:
    model = nn.Sequential(nn.Linear(4096, 3000), nn.Linear(3000, 301)).bfloat16().cuda()
    adapter = Watched(model.requires_grad_(False))
    guard = Guard(adapter, settings=Settings(on_incident=["repair"], step_bytes=1 << 30))
    before = model[0].weight.clone()
    assert guard.check().findings == ()
    assert adapter.bytes_read == 0
    poke(model[0].weight, 4096 * 1234 + 5, 1 << 9)
    guard.check()
    assert rules(guard) == ["WG901", "WG907"]
    assert guard.incidents[-2].finding.location.row == 1234
    assert torch.equal(before, model[0].weight)
    poke(model[1].weight, 5, 1)
    for _ in range(20):
        guard.step()
        torch.cuda.synchronize()
    assert rules(guard)[2:] == ["WG901", "WG907"]


@needs_gpu
def test_seven_billion_parameters_are_summed_at_the_speed_of_reading(
    claim: Callable[[str], None],
) -> None:
    layers = [nn.Linear(4096, 11008, bias=False, dtype=torch.bfloat16) for _ in range(3)]
    model = nn.Sequential(*layers).cuda().requires_grad_(False)
    adapter = TorchAdapter(model)
    times = 52  # 3 x 45 M parameters, 52 times over
    secret = np.arange(BLOCK_BYTES, dtype=np.uint64)
    live = adapter.tensors()

    def read() -> None:
        for layer in layers:
            layer.weight.view(torch.int32).amax()

    def sums() -> None:
        for tensor in live:
            adapter.sums(tensor.name, 0, tensor.nbytes, secret)

    def seconds(act: Callable[[], None]) -> float:
        act()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            act()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    reading, summing = seconds(read), seconds(sums)
    claim(
        f"7B bf16 parameters on {torch.cuda.get_device_name()}: read in {1e3 * reading:.1f} ms, "
        f"summed up in {1e3 * summing:.1f} ms, {summing / reading:.2f} times as long"
    )
