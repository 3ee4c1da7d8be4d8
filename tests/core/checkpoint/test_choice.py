"""Which files of a folder are its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints import Tensors, safetensors_bytes, write_safetensors
from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.choice import extra_shards, index_of, weight_groups
from weightguard.errors import CheckpointError

A: Tensors = {"a": ("F32", (2,), bytes(range(8)))}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return caught.value.finding.rule


def torch_file(path: Path, name: str = "t") -> None:
    torch.save({name: torch.arange(4.0)}, path)


@pytest.mark.parametrize(
    ("files", "expected", "beside"),
    [
        (["model.safetensors", "pytorch_model.bin"], "safetensors", ["pytorch_model.bin"]),
        (["model.safetensors", "training_args.bin"], "safetensors", ["training_args.bin"]),
        (
            ["pytorch_model.bin", "optimizer.pt", "rng_state_0.pth"],
            "torch",
            ["optimizer.pt", "rng_state_0.pth"],
        ),
        (["vocabulary.bin", "pytorch_model.bin"], "torch", ["vocabulary.bin"]),
        (["strange.bin", "model.ckpt"], "torch", ["strange.bin"]),
    ],
)
def test_one_format_of_a_folder_is_chosen(
    tmp_path: Path, files: list[str], expected: str, beside: list[str]
) -> None:
    for name in files:
        if name.endswith(".safetensors"):
            write_safetensors(tmp_path / name, A)
        elif name == "strange.bin":
            (tmp_path / name).write_bytes(b"\x01\x02 nothing known")
        else:
            torch_file(tmp_path / name, name)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == expected
        assert checkpoint.findings == ()
        assert [file.name for file in checkpoint.beside.files] == beside
        assert checkpoint.beside.count == len(beside)
        assert len(checkpoint.tensors) == 1


def test_a_disguised_file_beside_others_is_reported(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "1.safetensors", A)
    torch_file(tmp_path / "2.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        assert [file.name for file in checkpoint.files] == ["1.safetensors"]
        assert [found.rule for found in checkpoint.findings] == ["WG121"]


def test_a_damaged_safetensors_file_is_never_passed_over(tmp_path: Path) -> None:
    torch_file(tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert refusal(tmp_path) == "WG101"
    # one flipped bit of the length, and of the first brace
    data = bytearray(safetensors_bytes(A))
    data[6] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert refusal(tmp_path) == "WG116"
    data[6] ^= 1
    data[8] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert refusal(tmp_path) == "WG103"


INDEXES = ["model.safetensors.index.json", "model.fp16.safetensors.index.json"]


@pytest.mark.parametrize(
    ("names", "index"),
    [
        (INDEXES, INDEXES[0]),
        ([INDEXES[1]], INDEXES[1]),
        (["tf_model.h5.index.json", "flax_model.msgpack.index.json"], None),
        (["pytorch_model.bin.index.json", INDEXES[0]], INDEXES[0]),
        (["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json"),
        (["pytorch_model.bin.index.json", "model.safetensors"], None),
    ],
)
def test_the_index_that_loaders_follow(names: list[str], index: str | None) -> None:
    assert index_of(names) == index


def test_groups_of_weights_in_order_of_trust() -> None:
    names = ["a.onnx", "b.gguf", "c.bin", "d.safetensors", "e.PT", "optimizer.bin", "f.txt"]
    assert weight_groups(names) == (("d.safetensors",), ("c.bin", "e.PT"), ("b.gguf",), ("a.onnx",))


def test_extra_shards_are_files_a_loader_could_take_for_shards() -> None:
    names = ["m-1.safetensors", "m-2.safetensors", "other.safetensors", "m.bin"]
    assert extra_shards(names, names[:1]) == names[1:3]
    names = ["pytorch_model-1.bin", "pytorch_model.bin", "vocab.bin", "optimizer.bin"]
    assert extra_shards(names, names[:1]) == names[1:2]
