"""Variants, copies and sets of shards: told apart by name, read once, never called duplicates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import Tensors, random_tensor, write_safetensors, write_sharded
from weightguard import audit
from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.variants import WeightName, incomplete_sets, select

A: Tensors = {"a": random_tensor("F32", (4, 64))}
B: Tensors = {"b": random_tensor("F32", (4, 64), 1)}
HALF: Tensors = {"a": random_tensor("F16", (4, 64))}
SHARD = "model-0000{}-of-00002.safetensors"
FIRST, SECOND = SHARD.format(1), SHARD.format(2)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model.safetensors", ("model", "", 0, 0)),
        ("model.fp16.safetensors", ("model", "fp16", 0, 0)),
        ("model.fp16-00001-of-00002.safetensors", ("model", "fp16", 1, 2)),
        ("model-00001-of-00002.fp16.safetensors", ("model", "fp16", 1, 2)),
        ("model-00002-of-00002.safetensors", ("model", "", 2, 2)),
        ("Qwen2.5-7B.safetensors", ("Qwen2.5-7B", "", 0, 0)),
        ("consolidated.00.pth", ("consolidated.00", "", 0, 0)),
        (".safetensors", ("", "", 0, 0)),
        ("noext", ("", "", 0, 0)),
    ],
)
def test_a_name_in_parts(name: str, parts: tuple[str, str, int, int]) -> None:
    found = WeightName.of(name)
    assert (found.base, found.variant, found.number, found.count) == parts


@pytest.mark.parametrize(
    ("group", "read", "strangers"),
    [
        (["model.fp16.safetensors", "model.safetensors"], ["model.safetensors"], []),
        (["model.bf16.safetensors", "model.fp16.safetensors"], ["model.bf16.safetensors"], []),
        (["m.part1.safetensors", "m.part2.safetensors"], None, []),
        (["layers.1.safetensors", "layers.2.safetensors"], None, []),
        (["consolidated.safetensors"], None, []),
        (["consolidated.00.pth", "consolidated.01.pth"], None, []),
        (["consolidated.safetensors", FIRST, SECOND], [FIRST, SECOND], []),
        (["consolidated.00.pth", "pytorch_model.bin"], ["pytorch_model.bin"], []),
        ([FIRST, "model.fp16-00001-of-00002.safetensors", SECOND], [FIRST, SECOND], []),
        (["model-00001-of-00002.fp16.safetensors", FIRST, SECOND], [FIRST, SECOND], []),
        (
            ["adapter.safetensors", "model.safetensors"],
            ["model.safetensors"],
            ["adapter.safetensors"],
        ),
        ([FIRST, "model.safetensors"], ["model.safetensors"], [FIRST]),
    ],
)
def test_what_is_read_of_a_group(
    group: list[str], read: list[str] | None, strangers: list[str]
) -> None:
    selection = select(group)
    assert list(selection.read) == (group if read is None else read)
    assert list(selection.strangers) == strangers
    assert sorted([*selection.read, *selection.beside, *selection.strangers]) == sorted(group)


def kinds(folder: Path) -> dict[str, str]:
    report = audit(folder)
    assert report.complete
    assert [found for found in report.findings if found.severity != "info"] == []
    return {file.name: file.kind for file in report.not_read.files}


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model", "unet"])
def test_the_unqualified_model_is_read_and_its_variant_named(tmp_path: Path, stem: str) -> None:
    write_safetensors(tmp_path / f"{stem}.safetensors", A)
    write_safetensors(tmp_path / f"{stem}.fp16.safetensors", HALF)
    with open_checkpoint(tmp_path) as checkpoint:
        assert [tensor.dtype.name for tensor in checkpoint.tensors] == ["F32"]
    assert kinds(tmp_path) == {f"{stem}.fp16.safetensors": "variant"}


def test_variants_and_copies_beside_an_index(tmp_path: Path) -> None:
    write_sharded(tmp_path, [A, B])
    write_safetensors(tmp_path / "consolidated.safetensors", {**A, **B})
    write_safetensors(tmp_path / "model.fp16.safetensors", HALF)
    (tmp_path / "consolidated.00.pth").touch()
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "consolidated.00.pth").touch()
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "picture.png").touch()
    expected = {
        "consolidated.00.pth": "copy",
        "consolidated.safetensors": "copy",
        "model.fp16.safetensors": "variant",
        "original": "folder",
    }
    assert kinds(tmp_path) == expected
    assert kinds(tmp_path / "model.safetensors.index.json") == expected


def test_a_stranger_beside_a_whole_model_is_a_warning(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", A)
    write_safetensors(tmp_path / "other.safetensors", B)
    with open_checkpoint(tmp_path) as checkpoint:
        assert [(f.rule, f.severity) for f in checkpoint.findings] == [("WG121", "warning")]
        assert [tensor.name for tensor in checkpoint.tensors] == ["a"]


@pytest.mark.parametrize("missing", [FIRST, SECOND])
def test_a_shard_missing_without_an_index(tmp_path: Path, missing: str) -> None:
    write_safetensors(tmp_path / FIRST, A)
    write_safetensors(tmp_path / SECOND, B)
    assert kinds(tmp_path) == {}
    (tmp_path / missing).unlink()
    (found,) = audit(tmp_path, select=["WG1"]).findings
    assert (found.rule, found.severity, found.location.file) == ("WG109", "error", missing)
    assert found.evidence == {"count": 1, "shards": [missing]}


def test_missing_shards_are_one_finding_a_set() -> None:
    names = ["m-00002-of-99999.bin", "m-00001-of-99999.bin", "n-00001-of-00001.bin", "x.bin"]
    (found,) = incomplete_sets(names)
    assert found.evidence["count"] == 99997
    assert found.location.file == "m-00003-of-99999.bin"
    assert len(found.evidence["shards"]) == 8
    assert list(incomplete_sets(["g-00001-of-00002.gguf"])) == []


def test_a_manifest_beside_an_index_is_not_taken_for_weights(tmp_path: Path) -> None:
    model = write_sharded(tmp_path / "model", [A, B])
    (model / "model.weightguard.json").write_text("{}")
    (model / "model.v2.txt").touch()
    write_safetensors(model / "model.fp16.safetensors", HALF)
    with open_checkpoint(model) as checkpoint:
        assert [(f.name, f.kind) for f in checkpoint.beside.files] == [
            ("model.fp16.safetensors", "variant")
        ]
