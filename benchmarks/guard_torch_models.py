"""The models that the PyTorch guard is measured on, with calibrated manifests.

Calibrating SmolLM2 takes minutes, so it is done once and kept beside the fetched models. Of a
random model there is nothing to learn but what sentinels hold it to: that is found from a few
prompts each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.integrations.torch.real_folder import smollm2_folder
from tests.real_models import cache_folder
from weightguard import Manifest, fingerprint
from weightguard.calibration import Calibration, Canary
from weightguard_integrations.torch import calibrate, load_verified_model
from weightguard_integrations.torch.activations import calibrate_limits, count_alarms, profiles
from weightguard_integrations.torch.blocks import find_blocks
from weightguard_integrations.torch.stack import stack_of

MANIFEST = "model.weightguard.json"


def llama_200m_folder() -> Path:
    """Return a random Llama of 202 million parameters in bf16."""
    folder = cache_folder() / "llama-200m-bf16-folder"
    if not folder.is_dir():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32000, hidden_size=1024, intermediate_size=3072, num_hidden_layers=10,
            num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=2048,
            tie_word_embeddings=False,
        )  # fmt: skip
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


MODELS: dict[str, Callable[[], Path]] = {
    "SmolLM2-135M-Instruct": smollm2_folder,
    "Llama-200M, random": llama_200m_folder,
}


def calibrated(folder: Path) -> AbstractContextManager[Manifest]:
    """Open the calibrated manifest of a model's folder."""
    return briefly_calibrated(folder) if folder == llama_200m_folder() else kept_calibrated(folder)


@contextmanager
def briefly_calibrated(folder: Path) -> Iterator[Manifest]:
    """Open a manifest whose limits are those of a few prompts of random tokens."""
    with fingerprint(folder) as plain:
        model = load(folder, plain, torch.bfloat16)
        blocks = find_blocks(model, model.config)
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(model.config.vocab_size, (8, 64), generator=generator).tolist()
        with torch.no_grad():
            limits = calibrate_limits(list(profiles(model, blocks, prompts)))
        calibration = Calibration(
            stack=stack_of(model), prompts="random tokens", baseline_loss=0.0,
            confirmation_threshold=0.0, ablations=(), uncalibrated=(),
            massive_activations=limits.massive, activation_bounds=limits.bounds,
            false_alarms=count_alarms([]), probes=(),
            canary=Canary(tuple(prompts[0][:13]), 0.0, {}, {}),
        )  # fmt: skip
        document = msgspec.structs.replace(plain.document, calibration=calibration)
        yield replace(plain, document=document)


@contextmanager
def kept_calibrated(folder: Path) -> Iterator[Manifest]:
    """Open the calibrated manifest in the cache, made where there is none of these weights."""
    path = cache_folder() / f"{folder.name}-calibrated" / MANIFEST
    with fingerprint(folder) as plain:
        if path.exists():
            with Manifest.read(path) as kept:
                if kept.document.weights == plain.document.weights:
                    yield kept
                    return
        print(f"calibrating {folder.name}, once; this takes minutes", flush=True)
        path.parent.mkdir(exist_ok=True)
        with calibrate(folder, plain) as made:
            made.write(path)
            yield made


def load(folder: Path, manifest: Manifest, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return the model of verified bytes, in evaluation mode, as ``dtype``."""
    model: LlamaForCausalLM = load_verified_model(folder, manifest)
    return model if model.dtype == dtype else model.to(dtype)
