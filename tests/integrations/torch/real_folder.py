"""SmolLM2-135M-Instruct as the Hugging Face folder that transformers itself writes, in bf16."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tests.real_models import cache_folder, made_by_one, smollm2_gguf


def smollm2_folder() -> Path:
    """Return the folder with ``model.safetensors``, ``config.json`` and the tokenizer."""
    folder = cache_folder() / "smollm2-bf16-folder"
    with made_by_one(folder):
        if not folder.is_dir():
            _save(folder)
    return folder


def _save(folder: Path) -> None:
    source = smollm2_gguf()
    options = {"gguf_file": source.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent), dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True), **options,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
        written = Path(work) / folder.name
        model.to(torch.bfloat16).save_pretrained(written)
        AutoTokenizer.from_pretrained(str(source.parent), **options).save_pretrained(written)
        written.rename(folder)
