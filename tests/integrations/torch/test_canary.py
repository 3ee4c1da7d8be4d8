"""The canary: equal bits on its stack, its tolerance elsewhere, and damage on either."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integrations.torch import tiny_models
from tests.integrations.torch.tiny_models import COLUMNS, ROW
from weightguard import Manifest, ManifestError, WeightguardError, fingerprint
from weightguard_integrations.torch import calibrate
from weightguard_integrations.torch.canary import compare_canary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.saved(tiny_models.llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    with fingerprint(folder) as plain:
        return calibrate(folder, plain)


@pytest.fixture
def model(folder: Path) -> torch.nn.Module:
    loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return loaded.eval()


def test_equal_weights_give_equal_bits_on_the_same_stack(
    model: torch.nn.Module, manifest: Manifest
) -> None:
    found = compare_canary(model, manifest)
    assert found.same_stack
    assert (found.difference, found.tolerance, found.passed) == (0.0, 0.0, True)


def test_another_stack_is_held_to_a_tolerance(model: torch.nn.Module, manifest: Manifest) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        found = compare_canary(model, manifest)
    finally:
        torch.set_num_threads(before)
    assert not found.same_stack
    assert found.tolerance > 0
    assert found.passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_within_its_own_tolerance(
    model: torch.nn.Module, manifest: Manifest, dtype: torch.dtype
) -> None:
    found = compare_canary(copy.deepcopy(model).to(dtype), manifest)
    assert 0 < found.difference <= found.tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lost_super_weight_fails_on_any_stack(
    model: torch.nn.Module, manifest: Manifest, dtype: torch.dtype
) -> None:
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight").detach()
    weight[ROW, list(COLUMNS)] = 0
    assert not compare_canary(model.to(dtype), manifest).passed


def test_one_flipped_low_bit_fails_on_the_same_stack(
    model: torch.nn.Module, manifest: Manifest
) -> None:
    weight = model.get_parameter("model.layers.0.self_attn.v_proj.weight").detach()
    weight.view(torch.int32)[3, 4] ^= 1 << 18
    assert not compare_canary(model, manifest).passed


def test_logits_that_are_not_finite_fail(model: torch.nn.Module, manifest: Manifest) -> None:
    model.get_parameter("model.norm.weight").detach()[0] = torch.nan
    assert not compare_canary(model, manifest).passed


def test_what_cannot_be_compared_is_refused(
    model: torch.nn.Module, manifest: Manifest, folder: Path
) -> None:
    with pytest.raises(WeightguardError, match="no tolerance"):
        compare_canary(copy.deepcopy(model).double(), manifest)
    with fingerprint(folder) as plain, pytest.raises(ManifestError, match="calibrate"):
        compare_canary(model, plain)
    other = tiny_models.llama()
    other.resize_token_embeddings(other.config.vocab_size + 7)
    with pytest.raises(WeightguardError, match="another model"):
        compare_canary(other.eval(), manifest)
