"""The parts of a calibration on inputs made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import write_safetensors
from tests.integrations.torch import tiny_models
from weightguard import fingerprint, open_checkpoint
from weightguard.errors import WeightguardError
from weightguard_integrations.torch import memory
from weightguard_integrations.torch.activations import (
    Profile,
    calibrate_limits,
    count_alarms,
    profile,
    profiles,
)
from weightguard_integrations.torch.attested import check_loaded
from weightguard_integrations.torch.blocks import find_blocks, padded_batches
from weightguard_integrations.torch.canary import entropies, record_canary
from weightguard_integrations.torch.projections import (
    find_projections,
    named_as_recorded,
    uncalibrated,
)
from weightguard_integrations.torch.prompts import make_prompts


def seen(value: float, *, place: int = 0, others: float = 1.0, tokens: int = 32) -> Profile:
    """Return a profile of one layer with the value in channel 2 at one position."""
    states = torch.full((tokens, 8), others)
    states[place, 2] = value
    return profile([states])


def test_a_massive_activation_gets_a_band_where_it_lives() -> None:
    limits = calibrate_limits([seen(v) for v in (-3000.0, -3500.0, -4000.0)])
    (massive,) = limits.massive
    assert (massive.channel, massive.position) == (2, 0)
    assert (massive.bands[0].low, massive.bands[0].high) == (-6000.0, -2000.0)
    assert limits.bounds == (2.0,)
    assert not limits.exceeded(seen(-2500.0))
    assert limits.exceeded(seen(-1500.0))
    assert limits.exceeded(seen(3000.0))
    assert not limits.exceeded(seen(1.0), decoding=True)
    assert limits.exceeded(seen(-3000.0, others=2.5))


@pytest.mark.parametrize(("value", "others"), [(99.0, 0.01), (999.0, 1.0)])
def test_less_than_the_definition_is_not_massive(value: float, others: float) -> None:
    assert calibrate_limits([seen(value, others=others)] * 3).massive == ()


def test_an_activation_that_moves_has_no_position() -> None:
    limits = calibrate_limits([seen(2000.0, place=place) for place in (0, 3, 9)])
    assert limits.massive[0].position is None
    assert not limits.exceeded(seen(2000.0, place=20))
    assert limits.exceeded(seen(1000.0, place=20))


def test_alarms_are_counted_by_kind() -> None:
    alarms = count_alarms([("code", False), ("code", True), ("long", False)])
    assert (alarms.prompts, alarms.alarms) == (3, 1)
    assert (alarms.by_kind["code"].prompts, alarms.by_kind["code"].alarms) == (2, 1)


def test_padding_on_the_right_changes_no_profile() -> None:
    model = tiny_models.llama().float().eval()
    blocks = find_blocks(model, model.config)
    sequences = [[5], [1, 2, 3], list(range(40)), [9, 8]]
    with torch.no_grad():
        together = list(profiles(model, blocks, sequences))
        alone = [next(profiles(model, blocks, [s])) for s in sorted(sequences, key=len)]
    for one, other in zip(together, alone, strict=True):
        assert one.tokens == other.tokens
        torch.testing.assert_close(one.peaks, other.peaks)


def test_batches_hold_every_sequence_once() -> None:
    sequences = [list(range(1, n + 1)) for n in (1, 512, 700, 3, 3, 200)]
    rows = [
        row[:length].tolist()
        for tokens, lengths in padded_batches(sequences)
        for row, length in zip(tokens, lengths, strict=True)
    ]
    assert sorted(rows) == sorted(sequences)


def test_a_canary_leaves_the_weights_as_they_are() -> None:
    model = tiny_models.llama().float().eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        recorded = record_canary(model, [1, 2, 3])
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    assert set(recorded.record.tolerances) >= {"float32", "bfloat16"}
    assert recorded.record.tolerances["float32"] < recorded.record.tolerances["bfloat16"]


def test_entropy_of_known_distributions() -> None:
    logits = torch.tensor([[0.0] * 4, [100.0, 0, 0, 0]])
    assert entropies(logits) == pytest.approx([np.log(4), 0], abs=1e-9)


def test_without_a_tokenizer_prompts_are_token_ids() -> None:
    prompts = make_prompts(None, 256, None, 128)
    assert sum(map(len, prompts.held_out.values())) >= 100
    assert len(prompts.canary) == 13
    assert len(prompts.probes) == 4
    sequences = [s for kind in prompts.held_out.values() for s in kind]
    assert all(0 <= t < 256 for s in [*sequences, *prompts.activations] for t in s)
    assert all(1 <= len(s) <= 128 for s in sequences)
    assert make_prompts(None, 256, None, 128) == prompts


def test_stacked_experts_are_named_and_left_alone(tmp_path: Path) -> None:
    zeros = bytes(4 * 2 * 8 * 64)
    tensors = {"model.layers.0.mlp.experts.down_proj": ("F32", (2, 8, 64), zeros)}
    path = write_safetensors(tmp_path / "m.safetensors", tensors)
    with fingerprint(path) as manifest:
        assert find_projections(tiny_models.llama(), manifest.document) == ()
        names = uncalibrated(manifest.document, ())
    assert names == ("model.layers.0.mlp.experts.down_proj",)


def test_another_tensor_of_the_same_name_is_no_projection_and_no_equal(tmp_path: Path) -> None:
    folder = tiny_models.saved(tiny_models.llama(), tmp_path)
    model = tiny_models.llama().float()
    with fingerprint(folder) as manifest:
        document = manifest.document
        assert len(find_projections(model, document)) == 3
        assert check_loaded(named_as_recorded(model, document), document) == len(document.tensors)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[0, 0] = 9000
        assert len(find_projections(model, document)) == 2
        with pytest.raises(WeightguardError, match="another file was loaded"):
            check_loaded(named_as_recorded(model, document), document)


def test_memory_is_counted_by_the_weight(tmp_path: Path) -> None:
    values = np.arange(128, dtype=np.float16).reshape(2, 64)
    tensors = {"w": ("F16", (2, 64), values.tobytes())}
    with open_checkpoint(write_safetensors(tmp_path / "m.safetensors", tensors)) as checkpoint:
        assert memory.needed_memory(checkpoint.tensors) == memory.WORKSPACE_BYTES + 8 * 128


def test_available_memory_heeds_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text("3000000\n")
    used.write_text("1000000\n")
    monkeypatch.setattr(memory, "_GROUP_LIMITS", ((limit, used),))
    assert memory.available_memory() == 2_000_000
    limit.write_text("max\n")
    available = memory.available_memory()
    assert available is None or available > 2_000_000
