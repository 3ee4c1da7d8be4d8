"""The same weights have the same digests in every file format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from gguf import GGUFWriter
from onnx import numpy_helper
from safetensors.torch import save_file

from weightguard import fingerprint
from weightguard.manifest import TensorRecord

ARRAYS = {
    "decoder.weight": np.random.default_rng(1).standard_normal((70, 96)).astype(np.float32),
    "decoder.bias": np.random.default_rng(2).standard_normal(70).astype(np.float16),
    "table": np.random.default_rng(3).standard_normal((3, 5, 64)).astype(np.float32),
    "steps": np.arange(9, dtype=np.int32),
}


def write_safetensors_file(folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file({name: torch.from_numpy(array) for name, array in ARRAYS.items()}, path)
    return path


def write_torch_zip(folder: Path) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save({name: torch.from_numpy(array) for name, array in ARRAYS.items()}, path)
    return path


def write_torch_views(folder: Path) -> Path:
    """Write the same values as transposed views of storages that hold them the other way."""
    path = folder / "views.pt"
    torch.save(
        {
            name: torch.from_numpy(np.ascontiguousarray(array.T)).permute(
                *reversed(range(array.ndim))
            )
            for name, array in ARRAYS.items()
        },
        path,
    )
    return path


def write_onnx(folder: Path) -> Path:
    initializers = [numpy_helper.from_array(array, name) for name, array in ARRAYS.items()]
    graph = onnx.helper.make_graph([], "weights", [], [], initializers)
    path = folder / "model.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    return path


def write_onnx_external(folder: Path) -> Path:
    model = onnx.load(write_onnx(folder))
    path = folder / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="external.data", size_threshold=64)
    return path


def write_gguf(folder: Path) -> Path:
    path = folder / "model.gguf"
    writer = GGUFWriter(path, "test")
    for name, array in ARRAYS.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def records(path: Path) -> tuple[str, dict[str, TensorRecord]]:
    with fingerprint(path) as manifest:
        return manifest.document.weights, manifest.document.tensors


@pytest.mark.parametrize(
    "write", [write_torch_zip, write_torch_views, write_onnx, write_onnx_external, write_gguf]
)
def test_same_tensors_as_safetensors(tmp_path: Path, write: object) -> None:
    assert callable(write)
    assert records(write(tmp_path)) == records(write_safetensors_file(tmp_path))


def test_bf16_agrees_between_torch_and_safetensors(tmp_path: Path) -> None:
    tensors = {
        "w": torch.randn(65, 65).to(torch.bfloat16),
        "f8": torch.randn(70, 70).to(torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    torch.save(tensors, tmp_path / "m.pt")
    assert records(tmp_path / "m.pt") == records(tmp_path / "m.safetensors")
