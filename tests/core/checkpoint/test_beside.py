"""Files beside a checkpoint: all that loaders could take are named, and counted when many."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import Tensors, random_tensor, write_safetensors
from weightguard import audit
from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.beside import MAX_NAMED, files_beside
from weightguard.errors import CheckpointError

A: Tensors = {"a": random_tensor("F32", (4, 64))}


def test_each_file_beside_has_its_kind(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", A)
    beside = {
        "pytorch_model.bin": "pickle",
        "extra.PKL": "pickle",
        "model.ckpt": "pickle",
        "optimizer.pt": "training",
        "training_args.bin": "training",
        "model.gguf": "other",
        "tf_model.h5": "other",
    }
    for name in (*beside, "config.json", "README.md", "tokenizer.model"):
        (tmp_path / name).write_text("{}")
    report = audit(tmp_path)
    assert {file.name: file.kind for file in report.not_read.files} == beside
    assert report.not_read.count == len(beside)
    assert report.findings == ()


def test_a_named_file_has_nothing_beside_it(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", A)
    (tmp_path / "pytorch_model.bin").touch()
    assert audit(tmp_path / "model.safetensors").not_read.count == 0


def test_many_files_are_counted(tmp_path: Path) -> None:
    names = [f"{number}.bin" for number in range(1000)]
    found = files_beside(tmp_path, names, names[:1], {})
    assert (found.count, len(found.files)) == (999, MAX_NAMED)


def test_folders_with_weights_are_named_and_links_are_not_followed(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", A)
    for name in ("onnx", ".cache", "docs"):
        (tmp_path / name).mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    (tmp_path / ".cache" / "model.onnx").touch()
    (tmp_path / "link").symlink_to("onnx")
    with open_checkpoint(tmp_path) as checkpoint:
        assert [(f.name, f.kind) for f in checkpoint.beside.files] == [("onnx", "folder")]


def remedy(folder: Path) -> str:
    try:
        open_checkpoint(folder)
    except CheckpointError as error:
        return error.finding.remedy
    raise AssertionError


def test_a_folder_without_weights_says_where_they_are(tmp_path: Path) -> None:
    cache = tmp_path / "models--x--y"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert str(snapshot)[-40:] in remedy(cache) + remedy(cache / "snapshots")
    (tmp_path / "pipeline" / "unet").mkdir(parents=True)
    (tmp_path / "pipeline" / "unet" / "model.safetensors").touch()
    assert "'unet'" in remedy(tmp_path / "pipeline")
