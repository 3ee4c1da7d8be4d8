"""guard(): what vouches for a live model's weights, and what becomes of changes to them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from tests.integrations.torch.tiny_models import gpt2, llama
from weightguard import IntegrityError, WeightguardError, fingerprint
from weightguard.guard import State
from weightguard_integrations.torch import TorchGuard, guard

TOKENS = torch.arange(12)[None]
QUIET = ("metrics", "repair", "raise")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 Llama as a Hugging Face folder, with its manifest beside the folder."""
    folder = tmp_path_factory.mktemp("guarded") / "model"
    llama().save_pretrained(folder)
    with fingerprint(folder) as manifest:
        manifest.write(folder.parent / "model.weightguard.json")
    return folder


@pytest.fixture
def manifest(folder: Path) -> Path:
    return folder.parent / "model.weightguard.json"


def load(folder: Path, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The live bits of a contiguous tensor of 16 or 32 bits, past every account of torch's."""
    wide = torch.int16 if tensor.element_size() == 2 else torch.int32
    return tensor.detach().view(wide).numpy().view(f"u{tensor.element_size()}")


def codes(made: TorchGuard) -> list[str]:
    return [incident.code for incident in made.incidents if incident.code != "WG910"]


@pytest.fixture
def guarded(folder: Path, manifest: Path) -> Iterator[tuple[LlamaForCausalLM, TorchGuard]]:
    model = load(folder)
    with guard(model, manifest, scrub=None, on_incident=QUIET, golden=folder) as made:
        yield model, made


def test_loaded_weights_are_attested_by_name(
    guarded: tuple[LlamaForCausalLM, TorchGuard],
) -> None:
    model, made = guarded
    coverage = made.coverage()
    assert coverage.attested == 2 * sum(p.numel() for p in model.parameters())
    assert coverage.transformed == 0
    # rotary frequencies: buffers that no checkpoint holds
    assert coverage.trusted == sum(4 * b.numel() for b in model.buffers()) > 0
    assert coverage.ratio == 1
    assert codes(made) == []
    assert made.check().findings == ()


def test_a_cast_that_loses_nothing_is_recomputed(folder: Path, manifest: Path) -> None:
    made = guard(load(folder, torch.float32), manifest)
    assert made.coverage().attested == 0
    entry = made.baseline.tensors["lm_head.weight"]
    assert (entry.attestation, entry.how) == (
        "transformed",
        "cast from BF16; every byte recomputed",
    )
    assert codes(made) == []


def test_a_cast_result_with_one_wrong_low_bit_is_not_vouched_for(
    folder: Path, manifest: Path
) -> None:
    model = load(folder, torch.float32)
    bits(model.lm_head.weight)[3, 4] ^= 1
    made = guard(model, manifest)
    assert made.baseline.tensors["lm_head.weight"].attestation == "trusted-on-first-use"
    assert codes(made) == ["WG401"]
    assert made.state is State.DEGRADED


def test_a_cast_that_rounds_is_made_again_from_the_golden_copy(tmp_path: Path) -> None:
    llama(dtype=torch.float32).save_pretrained(tmp_path / "wide")
    model = load(tmp_path / "wide", torch.bfloat16)
    with fingerprint(tmp_path / "wide") as manifest:
        blind = guard(model, manifest)  # digests alone cannot tell what was rounded
        assert blind.coverage().transformed == 0
        (told,) = (i.finding for i in blind.incidents if i.code == "WG910")
        assert any("only a golden copy" in tensor["why"] for tensor in told.evidence["tensors"])
        blind.close()
        made = guard(model, manifest, golden=tmp_path / "wide", on_incident=("repair",))
        assert made.coverage().transformed == 2 * sum(p.numel() for p in model.parameters())
        bits(model.lm_head.weight)[2, 5:9] ^= 0xF0
        made.check()
        assert codes(made) == ["WG901", "WG907"]
        bits(model.lm_head.weight)[2, 5:9] ^= 0xF0
        made.close()
        damaged = guard(model, manifest, golden=tmp_path / "wide")
        entry = damaged.baseline.tensors["lm_head.weight"]
        assert entry.attestation == "trusted-on-first-use"
        damaged.close()


def test_other_names_are_found_by_content(folder: Path, manifest: Path) -> None:
    made = guard(nn.ModuleDict({"wrapped": load(folder)}), manifest)
    assert made.coverage().trusted < 1000
    assert made.baseline.tensors["wrapped.lm_head.weight"].record == "lm_head.weight"


def test_tied_weights_count_once(tmp_path: Path) -> None:
    model = gpt2()
    model.tie_weights()
    model.lm_head.weight = model.transformer.wte.weight
    made = guard(model)
    named = made.baseline.tensors["transformer.wte.weight"]
    assert named.tensor.aliases == ("lm_head.weight",)
    assert made.coverage().covered == sum(
        t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())
    )


def test_without_a_manifest_all_is_trusted_and_said_loudly(folder: Path) -> None:
    made = guard(load(folder))
    (incident,) = made.incidents
    assert (incident.code, incident.finding.severity) == ("WG910", "warning")
    assert "no manifest was given" in incident.finding.message
    assert made.coverage().attested == made.coverage().transformed == 0
    assert made.state is State.HEALTHY


def test_damage_from_before_the_guard_is_located(folder: Path, manifest: Path) -> None:
    model = load(folder)
    bits(model.lm_head.weight)[17, 5] ^= 1 << 14
    made = guard(model, manifest, on_incident=("metrics",))
    (incident,) = (i for i in made.incidents if i.code == "WG401")
    assert incident.finding.location.tensor == "lm_head.weight"
    assert incident.finding.location.element == (17, 5)
    assert made.state is State.DEGRADED
    assert [f.rule for f in made.check().findings] == ["WG401"]


def test_damage_from_before_the_guard_is_healed(folder: Path, manifest: Path) -> None:
    model = load(folder)
    clean = model(TOKENS).logits
    bits(model.lm_head.weight)[17, 5] ^= 1 << 14
    bits(model.model.layers[1].mlp.down_proj.weight)[8:12] ^= 3
    with guard(model, manifest, golden=folder, on_incident=QUIET) as made:
        assert codes(made) == ["WG401", "WG907"] * 2
        sources = [i.finding.evidence.get("source") for i in made.incidents if i.code == "WG907"]
        assert sorted(sources) == ["golden copy", "residues"]
        assert made.check().findings == ()
        assert torch.equal(model(TOKENS).logits, clean)


def test_an_update_that_loads_damaged_weights_is_healed_before_it_ends(
    folder: Path, manifest: Path, tmp_path: Path
) -> None:
    model, other = load(folder), llama(twice=True)
    other.save_pretrained(tmp_path / "other")
    with fingerprint(tmp_path / "other") as new, guard(model, manifest, scrub=None) as made:
        made.set_canary([1, 2, 3], 3600)
        with made.update(manifest=new):
            model.load_state_dict(other.state_dict())
            bits(model.lm_head.weight)[17, 5] ^= 1 << 14
        assert codes(made) == ["WG903", "WG401", "WG907"]
        assert made.run_canary(), "recorded after the repair"
        assert torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_an_update_does_not_bless_what_was_never_attested(folder: Path, manifest: Path) -> None:
    model = load(folder)
    bits(model.lm_head.weight)[17, 5] ^= 1 << 14
    made = guard(model, manifest, on_incident=("metrics",))
    with made.update(), torch.no_grad():
        model.model.norm.weight.mul_(2)
        bits(model.model.layers[0].input_layernorm.weight)[3] ^= 1
    assert [f.rule for f in made.check().findings] == ["WG401"]
    assert made.state is State.DEGRADED
    (declared,) = (i.finding for i in made.incidents if i.code == "WG903")
    assert declared.evidence["unaccounted"] == ["model.layers.0.input_layernorm.weight"]
    with made.update(manifest):
        model.load_state_dict(llama().state_dict())
    assert made.check().findings == ()
    assert made.state is State.HEALTHY


def test_a_manifest_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "other")
    refused = pytest.raises(WeightguardError, match="manifest of another model")
    with fingerprint(tmp_path / "other") as other, refused:
        guard(load(folder), other)


def test_a_partly_loaded_model_is_said(folder: Path, manifest: Path) -> None:
    model = load(folder)
    del model.model.layers[2]
    made = guard(model, manifest)
    assert codes(made) == ["WG402"]
    assert "7 of 30 attested tensors are not in" in made.incidents[0].finding.message


def test_meta_and_packed_weights_are_gaps(folder: Path) -> None:
    model = load(folder)
    model.model.layers[0].mlp.down_proj.weight = nn.Parameter(
        torch.empty(32, 64, device="meta", dtype=torch.bfloat16)
    )
    gaps = {gap.name: gap for gap in guard(model).coverage().gaps}
    assert gaps["model.layers.0.mlp.down_proj.weight"].nbytes == 2 * 32 * 64
    assert "WG916" in codes(guard(copy.deepcopy(model)))
    packed = torch.ao.quantization.quantize_dynamic(gpt_like(), {nn.Linear}, torch.qint8)
    coverage = guard(packed).coverage()
    assert (coverage.unknown, coverage.unreachable) == (0, (64 + 4) * (64 + 8))


def gpt_like() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


def test_a_super_weight_edit_is_found_and_undone_at_the_next_forward(
    guarded: tuple[LlamaForCausalLM, TorchGuard],
) -> None:
    model, made = guarded
    weight = model.model.layers[1].mlp.down_proj.weight
    made.pin_super_weights(None)
    assert made.pinned, "the manifest nominates super weights"
    clean = model(TOKENS).logits
    pin = next(iter(made.pinned))
    live = model.get_parameter(pin.tensor)
    bits(live).reshape(-1)[pin.start // 2] = 0
    assert torch.equal(model(TOKENS).logits, clean)
    assert codes(made) == ["WG901", "WG907"]
    assert weight is not None


def test_damage_beyond_residues_is_restored_from_the_golden_copy(
    guarded: tuple[LlamaForCausalLM, TorchGuard],
) -> None:
    model, made = guarded
    clean = model(TOKENS).logits
    bits(model.lm_head.weight)[10:20] ^= 0x55
    made.check()
    assert codes(made) == ["WG901", "WG907"]
    assert torch.equal(model(TOKENS).logits, clean)


def test_a_damaged_golden_copy_raises_at_the_next_forward(
    folder: Path, manifest: Path, tmp_path: Path
) -> None:
    golden = shutil.copytree(folder, tmp_path / "golden")
    weights = golden / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-20000:] = bytes(20000)
    weights.write_bytes(data)
    model = load(folder)
    made = guard(model, manifest, scrub=None, on_incident=QUIET, golden=golden).start()
    for parameter in model.parameters():
        bits(parameter).reshape(-1)[:8] ^= 3
    with pytest.raises(IntegrityError) as caught:
        model(TOKENS)
    assert "WG908" in codes(made)
    assert caught.value.report.findings[0].rule == "WG901"
    made.close()


def test_casts_are_restored_from_a_golden_copy(folder: Path, manifest: Path) -> None:
    model = load(folder, torch.float32)
    made = guard(model, manifest, on_incident=QUIET, golden=folder)
    before = model.lm_head.weight.clone()
    bits(model.lm_head.weight)[2, 5:9] ^= 0xF0F0
    made.check()
    assert codes(made) == ["WG901", "WG907"]
    assert torch.equal(model.lm_head.weight, before)
    made.close()


def _in_place(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)


def _pointer(model: LlamaForCausalLM) -> None:
    model.lm_head.weight.data = model.lm_head.weight.data * 1.5


def _exchanged(model: LlamaForCausalLM) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.data * 1.5)


def _merged(model: LlamaForCausalLM) -> None:
    model.lm_head.merged_adapters = ["lora"]
    bits(model.lm_head.weight)[:] ^= 2


def _behind(model: LlamaForCausalLM) -> None:
    bits(model.lm_head.weight)[:4] ^= 2


def _reshaped(model: LlamaForCausalLM) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight[:-1].clone())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_in_place, "WG902"), (_pointer, "WG902"), (_exchanged, "WG902"),
        (_merged, "WG904"), (_behind, "WG901"), (_reshaped, "WG914"),
    ],
)  # fmt: skip
def test_changes_are_told_apart(
    folder: Path, manifest: Path, change: Callable[[LlamaForCausalLM], None], code: str
) -> None:
    model = load(folder)
    made = guard(model, manifest, on_incident=("metrics",))
    change(model)
    made.check()
    made.check()
    assert codes(made) == [code]
    made.close()


def test_a_declared_update_is_held_to_its_manifest(
    folder: Path, manifest: Path, tmp_path: Path
) -> None:
    model = load(folder)
    made = guard(model, manifest, on_incident=("metrics",))
    other = llama(twice=True)
    other.save_pretrained(tmp_path / "other")
    with fingerprint(tmp_path / "other") as new:
        new.write(tmp_path / "other.weightguard.json")
    with made.update(manifest=tmp_path / "other.weightguard.json"):
        model.load_state_dict(other.state_dict())
    assert codes(made) == ["WG903"]
    assert made.coverage().attested == 2 * sum(p.numel() for p in model.parameters())
    assert made.check().findings == ()
    with made.update():
        _in_place(model)
    assert made.baseline.tensors["lm_head.weight"].attestation == "trusted-on-first-use"
    norm = made.baseline.tensors["model.norm.weight"]
    assert norm.attestation == "attested", "what did not change keeps what vouched for it"
    made.close()


def test_generating_under_the_background_thread_raises_no_alarm(
    folder: Path, manifest: Path
) -> None:
    model = load(folder)
    with torch.inference_mode():
        clean = model.generate(TOKENS, max_new_tokens=30, do_sample=False)
    with guard(model, manifest, scrub="100GB/s", step_budget="64MiB") as made:
        with torch.inference_mode():
            guarded = model.generate(TOKENS, max_new_tokens=30, do_sample=False)
        assert torch.equal(guarded, clean)
        assert made.status().passes >= 30
        assert codes(made) == []


def test_two_guards_on_one_model_are_refused(folder: Path) -> None:
    model = load(folder)
    first = guard(model)
    with pytest.raises(WeightguardError, match="has a guard already"):
        guard(model)
    first.close()
    guard(model).close()


@pytest.mark.parametrize("setting", [{"scrub": "fast"}, {"scrub": 0}, {"step_budget": "8 miles"}])
def test_settings_that_mean_nothing_are_refused(folder: Path, setting: dict[str, str]) -> None:
    with pytest.raises(WeightguardError, match="is not a"):
        guard(llama(), **setting)


def test_a_module_without_parameters_is_guarded_in_vain() -> None:
    with guard(nn.ReLU(), scrub=None) as made:
        assert made.coverage().ratio == 0
        assert made.check().complete
