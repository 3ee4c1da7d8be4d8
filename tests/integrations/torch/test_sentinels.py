"""Sentinels: silent on sound forward passes, and heard a step after one that left its limits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import msgspec
import pytest
import torch
from torch import nn

from tests.integrations.torch.test_guard import codes
from tests.integrations.torch.tiny_models import llama
from weightguard import Manifest, fingerprint
from weightguard.calibration import LayerBand, MassiveActivation
from weightguard.guard import State
from weightguard_integrations.torch import TorchGuard, calibrate, guard
from weightguard_integrations.torch.distant import Answer
from weightguard_integrations.torch.sentinels import Sentinels, watched_layers
from weightguard_integrations.torch.torch_guard import BLIND_PASSES

MASSIVE = MassiveActivation(2, 0, (LayerBand(0, -900.0, -300.0),))
TOKENS = torch.arange(12)[None]


def watched() -> tuple[nn.Module, Sentinels]:
    block = nn.Identity()
    return block, Sentinels([block], (MASSIVE,), (40.0,), 4)


def state(value: float, other: float = 1.0, length: int = 3) -> torch.Tensor:
    made = torch.ones(1, length, 4)
    made[0, 0, 2], made[0, -1, 1] = value, other
    return made


@pytest.mark.parametrize("value", [-300.0, -600.0, -900.0])
def test_values_within_their_limits_are_silent(value: float) -> None:
    block, sentinels = watched()
    block(state(value, -40.0))
    assert sentinels.read() == []


@pytest.mark.parametrize("value", [-299.0, -901.0, 600.0, 0.0, math.nan, math.inf])
def test_a_massive_activation_out_of_its_band_is_said_once(value: float) -> None:
    block, sentinels = watched()
    block(state(value))
    (alarm,) = sentinels.read()
    assert (alarm.layer, alarm.channel) == (0, 2)
    assert alarm.value == value or math.isnan(value)
    assert sentinels.read() == []


@pytest.mark.parametrize("value", [41.0, -41.0, math.nan, math.inf])
def test_other_channels_have_a_bound(value: float) -> None:
    block, sentinels = watched()
    block(state(-600.0, value))
    assert [alarm.channel for alarm in sentinels.read()] == [None]


def test_bands_hold_at_the_beginning_of_prompts_only() -> None:
    block, sentinels = watched()
    handle = block.register_forward_pre_hook(lambda *_: None)
    block(state(-5.0, length=1))
    assert sentinels.read() == [], "decoding"
    handle.remove()

    class Block(nn.Module):
        def forward(self, x: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
            return (x,)

    later = Block()
    sentinels = Sentinels([later], (MASSIVE,), (40.0,), 4)
    later(state(-5.0), position_ids=torch.tensor([[7, 8, 9]]), past_key_values="cache")
    later(state(-5.0), past_key_values="cache")
    assert sentinels.read() == [], "a part of a prompt that follows others"
    padded = torch.ones(1, 3, 4)
    padded[0, 1, 2] = -600
    later(padded, position_ids=torch.tensor([[0, 0, 1]]))
    assert sentinels.read() == [], "padded on the left"
    later(padded, position_ids=torch.tensor([[0, 1, 2]])[:, [2, 1, 0]])
    assert len(sentinels.read()) == 1


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manifest]:
    folder = tmp_path_factory.mktemp("sentinels") / "model"
    llama().save_pretrained(folder)
    with fingerprint(folder) as plain, calibrate(folder, plain) as calibrated:
        yield calibrated


def made_for(model: nn.Module, manifest: Manifest) -> TorchGuard:
    made = guard(model, manifest, scrub=None, step_budget=0, canary=None, on_incident=("repair",))
    made.pin(())  # super weights are compared before each pass, which would come first
    return made.start()


@pytest.mark.parametrize("way", ["eager", "compiled", "compiled for any length"])
def test_damage_is_heard_a_step_later_and_undone(manifest: Manifest, way: str) -> None:
    torch._dynamo.reset()  # code compiled for another Llama would be reused, without hooks
    model = llama().eval()
    made = made_for(model, manifest)
    dynamic = way == "compiled for any length"
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=dynamic)
    run = model if way == "eager" else compiled
    with torch.inference_mode():
        for length in (5, 7, 9) if dynamic else ():
            run(TOKENS[:, :length], use_cache=False)
        clean = run(TOKENS, use_cache=False).logits
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        run(TOKENS, use_cache=False)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        assert codes(made) == []
        weight = model.model.layers[0].mlp.down_proj.weight
        weight.view(torch.int16).numpy()[3, 4] = 0x7E00  # 4e37 in bf16, behind torch's back
        run(TOKENS, use_cache=False)
        assert codes(made) == []
        healed = run(TOKENS, use_cache=False).logits
    assert codes(made) == ["WG905", "WG901", "WG907"]
    assert torch.equal(healed, clean)
    assert made.state is State.HEALTHY
    made.close()


def test_the_last_pass_is_read_without_another(manifest: Manifest) -> None:
    model = llama().eval()
    made = made_for(model, manifest)
    weight = model.model.layers[0].mlp.down_proj.weight
    weight.view(torch.int16).numpy()[3, 4] = 0x7E00
    model(TOKENS, use_cache=False)
    assert codes(made) == []
    made.check()
    assert codes(made) == ["WG905", "WG901", "WG907"]
    made.close()
    with guard(model, manifest, scrub="1kB/s", step_budget=0, canary=None) as made:
        made.pin(())
        ends = time.monotonic() + 60
        while made.status().last_full_pass is None and time.monotonic() < ends:
            time.sleep(0.01)  # the next slice comes in an hour
        weight.view(torch.int16).numpy()[3, 4] = 0x7E00
        model(TOKENS, use_cache=False)
        while "WG905" not in codes(made) and time.monotonic() < ends:
            time.sleep(0.02)
    assert codes(made)[-3:] == ["WG905", "WG901", "WG907"]


def test_of_a_device_the_pass_before_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    block = nn.Identity()
    sentinels = Sentinels([block], (MASSIVE,), (40.0,), 4, distant=True)
    block(state(-600.0))
    assert sentinels.read() == []
    assert sentinels.read() == []
    block(state(-600.0, 41.0))
    assert sentinels.read() == [], "asked for before that pass"
    assert [alarm.value for alarm in sentinels.read()] == [41.0]
    assert sentinels.read() == [], "said once"
    block(state(-1.0, 41.0))
    assert [alarm.channel for alarm in sentinels.read(wait=True)] == [2, None]
    block(state(-600.0, 41.0))
    sentinels.read()
    monkeypatch.setattr(Answer, "ready", lambda _answer: False)
    assert sentinels.read() == [], "the device is not done yet, and nobody waits"
    assert sentinels.read(wait=True)


def test_the_first_of_several_blocks_is_named() -> None:
    blocks = [nn.Identity() for _ in range(8)]
    far = MassiveActivation(2, 0, (LayerBand(1, -900.0, -300.0), LayerBand(2, -900.0, -300.0)))
    near = MassiveActivation(3, 0, (LayerBand(3, 0.0, 9.0),))
    assert watched_layers((far, near), 8) == [2, 3, 7]
    assert watched_layers((), 1) == [0]
    assert watched_layers((far,), 3) == [2]
    sentinels = Sentinels(blocks, (far, near), (40.0,) * 8, 4)
    for block in blocks:
        block(state(-1.0, 50.0))
    alarms = sentinels.read()
    assert [(alarm.layer, alarm.channel) for alarm in alarms] == [
        (2, 2), (2, None), (3, None), (7, None)
    ]  # fmt: skip


def test_a_step_of_decoding_is_looked_at_after_the_last_block() -> None:
    blocks = [nn.Identity(), nn.Identity()]
    sentinels = Sentinels(blocks, (MASSIVE,), (40.0, 40.0), 4)
    assert sentinels.layers == [0, 1]
    step = state(-5.0, 50.0, length=1).expand(3, 1, 4)
    blocks[0](step)
    blocks[1](step[:0])
    assert sentinels.read() == []
    blocks[1](step)
    assert [(alarm.layer, alarm.channel) for alarm in sentinels.read()] == [(1, None)]


def test_sentinels_are_no_part_of_a_trace() -> None:
    block = nn.Identity()
    sentinels = Sentinels([block], (), (40.0,), 4)
    traced = torch.jit.trace(block, (state(1.0, 50.0),), check_trace=False)
    assert "clamp" not in str(traced.graph)
    assert sentinels.read() == []
    block(state(1.0, 50.0))
    assert sentinels.read() != []


def test_sentinels_that_see_nothing_say_so(manifest: Manifest) -> None:
    torch._dynamo.reset()
    with torch.inference_mode():
        torch.compile(llama().eval(), backend="eager")(TOKENS, use_cache=False)
        compiled = torch.compile(llama().eval(), backend="eager")  # its code is there already
        made = guard(compiled, manifest, scrub=None, canary=None, on_incident=())
        with made:
            for _ in range(BLIND_PASSES):
                compiled(TOKENS, use_cache=False)
    assert [i.finding.message for i in made.incidents if i.code == "WG916"] == [
        "sentinels saw nothing of 100 forward passes: compiled code goes on without hooks that it "
        "was not compiled with"
    ]


def test_a_canary_does_not_pass_for_a_request(manifest: Manifest) -> None:
    made = guard(llama().eval(), manifest, scrub=None, on_incident=())
    assert made.run_canary()
    assert made._sentinels is not None
    assert made.read_sentinels()
    assert not made._sentinels.seen
    made.adapter.root(TOKENS)  # type: ignore[attr-defined]
    assert made.read_sentinels()
    assert made._sentinels.seen
    assert made.run_canary()
    assert made._sentinels.seen
    made.close()


def test_a_calibration_of_another_model_is_said_and_not_used(manifest: Manifest) -> None:
    calibration = manifest.document.calibration
    assert calibration is not None
    wide = MassiveActivation(10**6, 0, (LayerBand(0, -900.0, -300.0),))
    deep = MassiveActivation(0, 0, (LayerBand(10**6, -900.0, -300.0),))
    for stranger in (wide, deep):
        made = guard(llama().eval(), manifest, scrub=None, canary=None, on_incident=())
        made.set_sentinels(msgspec.structs.replace(calibration, massive_activations=(stranger,)))
        assert codes(made) == ["WG916"]
        assert made._sentinels is None
        made.close()


def test_two_passes_under_way_at_once_are_both_read() -> None:
    block, sentinels = watched()
    block(state(-600.0, 41.0))
    block(state(-600.0, 1.0))
    assert [alarm.value for alarm in sentinels.read()] == [41.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 5])
def test_magnitudes_are_exact_in_every_dtype(dtype: torch.dtype, length: int) -> None:
    block, sentinels = watched()
    for value in (-39.5, 39.5, -0.0):
        block(torch.full((1, length, 4), value, dtype=dtype))
        assert sentinels._banks[0]._cells[0] == abs(torch.tensor(value, dtype=dtype)), value
        sentinels.reset()
    for value in (math.nan, -math.inf):
        block(torch.full((1, length, 4), value, dtype=dtype))
        assert sentinels.read()


def test_switched_off_or_updated_without_a_calibration_nothing_is_watched(
    manifest: Manifest,
) -> None:
    model = llama().eval()
    off = guard(model, manifest, scrub=None, canary=None, sentinels=False)
    assert off._sentinels is None
    off.close()
    made = made_for(model, manifest)
    with made.update(), torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1e6)
    model(TOKENS)
    model(TOKENS)
    assert codes(made) == ["WG903"]
    made.close()
