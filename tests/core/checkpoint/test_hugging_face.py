"""Hugging Face folders: snapshots of the download cache, blobs named by digest, config.json."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

import weightguard
from tests.checkpoints import Tensors, random_tensor, safetensors_bytes, write_sharded
from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.hugging_face import blobs_of
from weightguard.errors import CheckpointError

WEIGHTS: Tensors = {"w": random_tensor("F32", (16, 64))}
CONFIG = b'{"model_type": "test"}'


class Cache:
    """A hub cache with one repository, written as the hub's client writes it."""

    def __init__(self, root: Path, repository: str = "models--org--name"):
        self.repository = root / repository
        self.snapshot = self.repository / "snapshots" / ("c0ffee" * 6 + "abcd")
        self.blobs = self.repository / "blobs"
        self.snapshot.mkdir(parents=True)
        self.blobs.mkdir()
        (self.repository / "refs").mkdir()
        (self.repository / "refs" / "main").write_text(self.snapshot.name)

    def add(self, name: str, data: bytes, blob: str | None = None) -> Path:
        """Add a file and return its blob; named by SHA-256 as large files are, unless given."""
        path = self.blobs / (blob or hashlib.sha256(data).hexdigest())
        path.write_bytes(data)
        link = self.snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(path, link.parent))
        return path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "hub")
    cache.add("config.json", CONFIG, blob=hashlib.sha1(CONFIG).hexdigest())
    return cache


def rules(path: Path, *, file_digests: bool = False) -> list[str]:
    report = weightguard.audit(path, select=["WG1"], file_digests=file_digests)
    return [found.rule for found in report.findings]


@pytest.mark.parametrize("file_digests", [False, True])
def test_a_snapshot_is_clean(cache: Cache, file_digests: bool) -> None:
    cache.add("model.safetensors", safetensors_bytes(WEIGHTS))
    assert rules(cache.snapshot, file_digests=file_digests) == []
    assert rules(cache.snapshot / "model.safetensors", file_digests=file_digests) == []
    with open_checkpoint(cache.snapshot) as checkpoint:
        assert checkpoint.config == {"model_type": "test"}
        assert [file.name for file in checkpoint.files] == ["model.safetensors"]
        assert bytes(checkpoint.tensors[0].read()) == WEIGHTS["w"][2]


def test_a_snapshot_reached_through_a_link(cache: Cache, tmp_path: Path) -> None:
    cache.add("model.safetensors", safetensors_bytes(WEIGHTS))
    (tmp_path / "alias").symlink_to(cache.snapshot)
    assert rules(tmp_path / "alias", file_digests=True) == []
    assert rules(tmp_path / "alias" / "model.safetensors", file_digests=True) == []


def test_a_sharded_snapshot_and_a_folder_inside(cache: Cache, tmp_path: Path) -> None:
    shards = [WEIGHTS, {"v": random_tensor("F16", (64,))}]
    folder = write_sharded(tmp_path / "plain", shards)
    for file in sorted(folder.iterdir()):
        cache.add(f"unet/{file.name}", file.read_bytes())
    for path in (cache.snapshot / "unet", cache.snapshot / "unet" / "model.safetensors.index.json"):
        assert rules(path, file_digests=True) == []
        with open_checkpoint(path) as checkpoint:
            assert [t.name for t in checkpoint.tensors] == ["w", "v"]


def test_a_damaged_blob_contradicts_its_name(cache: Cache) -> None:
    data = bytearray(safetensors_bytes(WEIGHTS))
    blob = cache.add("model.safetensors", bytes(data))
    data[-1] ^= 1
    blob.write_bytes(data)
    for path in (cache.snapshot, cache.snapshot / "model.safetensors"):
        assert rules(path) == []
        assert rules(path, file_digests=True) == ["WG118"]


def test_a_damaged_blob_of_an_index_is_found(cache: Cache, tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "plain", [WEIGHTS])
    blobs = {f.name: cache.add(f.name, f.read_bytes()) for f in folder.iterdir()}
    index = blobs["model.safetensors.index.json"]
    index.write_bytes(index.read_bytes() + b"\n")
    assert rules(cache.snapshot, file_digests=True) == ["WG118"]


def test_a_name_of_40_digits_is_no_checksum(cache: Cache) -> None:
    cache.add("model.safetensors", safetensors_bytes(WEIGHTS), blob="0" * 40)
    with open_checkpoint(cache.snapshot) as checkpoint:
        assert checkpoint.checksums == ()
    assert rules(cache.snapshot, file_digests=True) == []


def test_the_same_name_outside_a_cache_is_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / ("0" * 64)).write_bytes(safetensors_bytes(WEIGHTS))
    assert rules(tmp_path / "blobs" / ("0" * 64), file_digests=True) == []


def test_links_elsewhere_are_refused(cache: Cache, tmp_path: Path) -> None:
    other = Cache(tmp_path / "hub", "models--org--other")
    blob = other.add("model.safetensors", safetensors_bytes(WEIGHTS))
    (tmp_path / "secret").write_bytes(safetensors_bytes(WEIGHTS))
    for target in (blob, tmp_path / "secret", other.snapshot / "model.safetensors"):
        link = cache.snapshot / "model.safetensors"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert rules(cache.snapshot) == ["WG110"]
        assert rules(link) == ["WG110"]


def test_a_blobs_folder_that_is_a_link_is_not_trusted(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "hub")
    cache.add("model.safetensors", safetensors_bytes(WEIGHTS))
    cache.blobs.rename(tmp_path / "elsewhere")
    cache.blobs.symlink_to(tmp_path / "elsewhere")
    assert blobs_of(cache.snapshot) is None
    assert rules(cache.snapshot) == ["WG110"]


def test_only_a_cache_has_blobs(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "hub")
    assert blobs_of(cache.snapshot) == cache.blobs
    assert blobs_of(cache.snapshot / "sub") == cache.blobs
    assert blobs_of(cache.repository) is None
    assert blobs_of(cache.blobs) is None
    assert blobs_of(Cache(tmp_path, "not-a-repository").snapshot) is None
    assert blobs_of(Path("/")) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a":1,"a":2}', '{"a":NaN}', '{"a":' + "[" * 9999]
)
def test_a_bad_config_leaves_the_weights_readable(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(WEIGHTS))
    (tmp_path / "config.json").write_text(text)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config is None
        assert [f.rule for f in checkpoint.findings] == ["WG120"]
        assert len(checkpoint.tensors) == 1


def test_a_config_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(WEIGHTS))
    (tmp_path / "config.json").write_text("{}")
    os.truncate(tmp_path / "config.json", 1 << 40)
    assert rules(tmp_path) == ["WG120"]


def test_a_config_is_read_beside_an_index(tmp_path: Path) -> None:
    write_sharded(tmp_path, [WEIGHTS])
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == {"hidden_size": 4}
    with open_checkpoint(tmp_path / "model.safetensors.index.json") as checkpoint:
        assert checkpoint.config == {"hidden_size": 4}


def test_a_snapshot_file_that_is_missing_its_blob(cache: Cache) -> None:
    cache.add("model.safetensors", safetensors_bytes(WEIGHTS)).unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(cache.snapshot)
    assert caught.value.finding.rule == "WG122"
