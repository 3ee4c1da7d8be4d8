"""Every format comes back bit for bit, container and all, where its tensors lie in one run."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.checkpoints import random_tensor
from tests.damaged import attest, contents, overwrite
from tests.gguf_files import F32, Q8_0, Info, gguf_bytes, string, u32
from weightguard import Manifest, open_checkpoint
from weightguard.repair import repair, repair_in_place


def write_gguf(folder: Path) -> Path:
    q, f = random_tensor("Q8_0", (64, 1024), 1), random_tensor("F32", (100, 64), 2)
    infos = (Info(b"q", (1024, 64), Q8_0, 0), Info(b"f", (64, 100), F32, len(q[2])))
    entries = (string(b"general.architecture", b"llama"), u32(b"answer", 42))
    path = folder / "m.gguf"
    path.write_bytes(gguf_bytes(infos, q[2] + f[2], entries=entries))
    return path


def write_torch(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    tensors = {n: torch.randn(200, 300, generator=generator) for n in ("w", "v")}
    torch.save(tensors, folder / "m.pt")
    return folder / "m.pt"


def onnx_model() -> onnx.ModelProto:
    values = np.random.default_rng(1).standard_normal((200, 300)).astype(np.float32)
    weights = [numpy_helper.from_array(values + n, f"w{n}") for n in range(2)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 200])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 300])
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("MatMul", ["x", "w1"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def write_onnx(folder: Path) -> Path:
    onnx.save(onnx_model(), folder / "m.onnx")
    return folder / "m.onnx"


def write_onnx_external(folder: Path) -> Path:
    onnx.save(onnx_model(), folder / "m.onnx", save_as_external_data=True, location="m.data")
    return folder / "m.onnx"


WRITERS = [write_gguf, write_torch, write_onnx, write_onnx_external]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("what", ["tensor", "header", "end", "element"])
def test_a_damaged_file_is_the_original_again(
    tmp_path: Path, write: Callable[[Path], Path], what: str
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    path = write(folder)
    manifest = attest(path, tmp_path / "m.weightguard.json", parity=True)
    sound = contents(folder)
    with open_checkpoint(path) as checkpoint:
        tensor = checkpoint.tensors[0]
        file, offset = folder / tensor.shard, tensor.offset
        assert offset is not None
    if what == "end":
        with path.open("r+b") as cut:
            cut.truncate(path.stat().st_size - 30)
    else:
        place, data = {
            "tensor": (file, bytes(40_000)),
            "header": (path, b"\xfe" * 3),
            "element": (file, b"\x7f"),
        }[what]
        overwrite(place, 0 if what == "header" else offset + 1001, data)
    damaged = contents(folder)
    assert damaged != sound
    with Manifest.read(manifest) as read:
        output = tmp_path / "new"
        assert repair(path, read, output).healed
        result = contents(output) if output.is_dir() else {path.name: output.read_bytes()}
        assert result == sound
        assert contents(folder) == damaged
        assert repair_in_place(path, read).healed
    assert contents(folder) == sound


def test_an_element_of_a_torch_archive_heals_without_parity_and_its_crc_is_right(
    tmp_path: Path,
) -> None:
    path = write_torch(tmp_path)
    manifest = attest(path, tmp_path / "m.weightguard.json")
    sound = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        offset = checkpoint.tensors[0].offset
    assert offset is not None
    overwrite(path, offset + 1001, b"\x7f")
    with Manifest.read(manifest) as read:
        assert repair_in_place(path, read).healed
    assert path.read_bytes() == sound
    assert zipfile.ZipFile(path).testzip() is None


def test_views_that_share_and_stride_storage_survive(tmp_path: Path) -> None:
    base = torch.arange(40_000, dtype=torch.float32).reshape(200, 200)
    tensors = {"base": base, "turned": base.t(), "part": base[3:90], "tail": base[50:]}
    path = tmp_path / "m.pt"
    torch.save(tensors, path)
    manifest = attest(path, tmp_path / "m.weightguard.json", parity=True)
    sound = path.read_bytes()
    at = sound.index(base.numpy().tobytes()) + 60 * 800
    overwrite(path, at, b"\xaa\xbb")
    with Manifest.read(manifest) as read:
        assert repair_in_place(path, read).healed
    assert path.read_bytes() == sound
