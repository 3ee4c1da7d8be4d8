"""Checkpoints for tests, written by hand no library between bytes and expectation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from weightguard.tensor import DTYPES

Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]
"""Tensor name to (dtype name, shape, canonical bytes)."""


def safetensors_bytes(tensors: Tensors) -> bytes:
    """Return a valid safetensors file with the tensors in the given order."""
    header: dict[str, object] = {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (end, end + len(data))}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(t[2] for t in tensors.values())


def write_safetensors(path: Path, tensors: Tensors) -> Path:
    """Write one safetensors file and return its path."""
    path.write_bytes(safetensors_bytes(tensors))
    return path


def write_sharded(folder: Path, shards: list[Tensors]) -> Path:
    """Write a folder of shards with their index and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map, total = {}, 0
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(len(t[2]) for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def random_tensor(
    dtype: str, shape: tuple[int, ...], seed: int = 0
) -> tuple[str, tuple[int, ...], bytes]:
    """Return a tensor of ordinary weights: normal values for floats, uniform bytes else."""
    generator = np.random.default_rng(seed)
    count = math.prod(shape)
    values = generator.standard_normal(count).astype(np.float32) * np.float32(0.05)
    if dtype == "BF16":
        return dtype, shape, (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    if dtype in ("F16", "F32", "F64"):
        return dtype, shape, values.astype(f"<f{DTYPES[dtype].block_bytes}").tobytes()
    nbytes = DTYPES[dtype].nbytes(count)
    return dtype, shape, generator.integers(0, 256, nbytes, dtype=np.uint8).tobytes()
