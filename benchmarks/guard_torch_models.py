"""The models that the PyTorch guard is measured on, with calibrated manifests, kept in the cache.

Calibrating takes minutes, so it is done once a model and kept beside the fetched ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.integrations.torch.real_folder import smollm2_folder
from tests.real_models import cache_folder
from weightguard import Manifest, fingerprint
from weightguard_integrations.torch import calibrate, load_verified_model

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


@contextmanager
def calibrated(folder: Path) -> Iterator[Manifest]:
    """Open the calibrated manifest of a model's folder, made where there is none of its weights."""
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
