"""all-MiniLM-L6-v2 as torch exports it to ONNX, and quantised; made once, kept in the cache."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from transformers import AutoModel

from tests.real_models import cache_folder, made_by_one, magika_onnx, minilm_folder

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def minilm() -> Path:
    """Return the float32 model, 90 MB."""
    return _made("minilm.onnx", _export)


def minilm_int8() -> Path:
    """Return it with dynamically quantised products, 23 MB."""
    return _made("minilm-int8.onnx", lambda path: quantize_dynamic(minilm(), path))


def minilm_int4() -> Path:
    """Return it with products quantised to 4 bits in blocks of 32, 55 MB."""
    return _made("minilm-int4.onnx", _quantise)


REAL: dict[str, Callable[[], Path]] = {
    "magika": magika_onnx,
    "MiniLM": minilm,
    "MiniLM int8": minilm_int8,
    "MiniLM int4": minilm_int4,
}


class _Encoder(torch.nn.Module):
    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(INPUTS, inputs, strict=True))
        hidden: torch.Tensor = self.model(**named).last_hidden_state
        return hidden


def _export(path: Path) -> None:
    model = AutoModel.from_pretrained(str(minilm_folder()), attn_implementation="eager").eval()
    ids = torch.ones((2, 16), dtype=torch.long)
    axes = {name: {0: "batch", 1: "sequence"} for name in (*INPUTS, "hidden")}
    torch.onnx.export(
        _Encoder(model), (ids, ids, ids * 0), str(path), input_names=list(INPUTS),
        output_names=["hidden"], dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip


def _quantise(path: Path) -> None:
    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)
    quantiser = MatMulNBitsQuantizer(onnx.load(minilm()), block_size=32, is_symmetric=True)
    quantiser.process()
    quantiser.model.save_model_to_file(str(path), False)


def _made(name: str, make: Callable[[Path], object]) -> Path:
    path = cache_folder() / "onnx" / name
    with made_by_one(path):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as work:
                written = Path(work) / name
                make(written)
                written.rename(path)
    return path
