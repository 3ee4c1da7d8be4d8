"""A golden copy in any format, sharding and place; only what is lost is read of it."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.checkpoints import random_tensor, write_safetensors, write_sharded
from tests.damaged import MIB, SHARDS, attest, contents, flip, overwrite, write_model
from tests.gguf_files import F16, F32, Info, gguf_bytes
from weightguard import CheckpointError, Manifest, WeightguardError, open_checkpoint
from weightguard.checkpoint.remote import is_remote, open_remote
from weightguard.repair import Means, RepairOutcome, repair_in_place

LOST = 3
"""Blocks that ``damage`` loses of tensor c."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return write_model(tmp_path / "golden")


@pytest.fixture
def manifest(golden: Path, tmp_path: Path) -> Path:
    return attest(golden, tmp_path / "m.weightguard.json")


def damage(model: Path) -> None:
    for block in (2, 4, 7):
        offset = block * MIB + 10_000
        overwrite(model / "model-00002-of-00002.safetensors", offset, os.urandom(5000))


def heal(model: Path, manifest: Path, golden: object) -> RepairOutcome:
    with Manifest.read(manifest) as read:
        return repair_in_place(model, read, Means(str(golden), threads=2))


def assert_healed(outcome: RepairOutcome, model: Path, golden: Path) -> None:
    assert outcome.healed
    assert contents(model) == contents(golden)
    assert outcome.fetched == LOST * MIB
    assert [t.blocks for t in outcome.tensors] == [{"golden copy": LOST}]


def test_a_folder(model: Path, golden: Path, manifest: Path) -> None:
    damage(model)
    assert_healed(heal(model, manifest, golden), model, golden)


def test_another_sharding(model: Path, golden: Path, manifest: Path, tmp_path: Path) -> None:
    one = write_safetensors(
        tmp_path / "one.safetensors", {k: t for s in SHARDS for k, t in s.items()}
    )
    damage(model)
    assert_healed(heal(model, manifest, one), model, golden)


def test_another_format(model: Path, golden: Path, manifest: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    c, n = SHARDS[1]["c"], SHARDS[0]["n"]
    infos = (Info(b"c", c[1][::-1], F16, 0), Info(b"n", (64,), F32, len(c[2])))
    other.write_bytes(gguf_bytes(infos, c[2] + n[2]))
    damage(model)
    assert_healed(heal(model, manifest, other), model, golden)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_remote_folder(
    model: Path, golden: Path, manifest: Path, protocol: str, tmp_path: Path
) -> None:
    url = f"file://{golden}"
    if protocol == "memory":
        system = fsspec.filesystem("memory")
        for name, data in contents(golden).items():
            system.pipe(f"/golden/{name}", data)
        url = "memory://golden"
    damage(model)
    assert_healed(heal(model, manifest, url), model, golden)


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files by ranges; counts the bytes of bodies."""

    served = 0
    honours_ranges = True
    lists_folders = True

    def log_message(self, *_: object) -> None: ...

    def list_directory(self, path: Any) -> Any:
        if self.lists_folders:
            return super().list_directory(path)
        return self.send_error(403)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        if wanted and self.honours_ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            body = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            body = data
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        type(self).served += len(body)


@pytest.fixture
def server(golden: Path) -> Iterator[tuple[str, type[RangeHandler]]]:
    class Handler(RangeHandler):
        def __init__(self, *args: Any, **more: Any):
            super().__init__(*args, directory=str(golden), **more)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", Handler
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("lists", [True, False])
def test_a_folder_on_a_web_server(
    model: Path,
    golden: Path,
    manifest: Path,
    server: tuple[str, type[RangeHandler]],
    lists: bool,
) -> None:
    url, handler = server
    handler.lists_folders = lists
    damage(model)
    assert_healed(heal(model, manifest, url), model, golden)
    assert LOST * MIB <= handler.served < LOST * MIB + 20_000


def test_a_web_server_without_ranges_is_told(
    model: Path, manifest: Path, server: tuple[str, type[RangeHandler]]
) -> None:
    url, handler = server
    handler.honours_ranges = False
    damage(model)
    before = contents(model)
    with pytest.raises(CheckpointError, match="ranges"):
        heal(model, manifest, url)
    assert contents(model) == before


@pytest.mark.parametrize("kind", ["other names", "other weights", "none", "unknown", "nowhere"])
def test_a_golden_copy_that_is_none_changes_nothing(
    model: Path, manifest: Path, kind: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tensors = {"other names": {"x": SHARDS[1]["c"]}}.get(
        kind, {"c": random_tensor("F16", (5, 1000, 1000), 99)}
    )
    if kind != "none":
        write_sharded(other, [tensors])
    golden = {"unknown": "nosuch://bucket/x", "nowhere": "http://127.0.0.1:1/x"}.get(kind, other)
    damage(model)
    before = contents(model)
    with pytest.raises(WeightguardError):
        heal(model, manifest, golden)
    assert contents(model) == before


def test_a_golden_copy_that_is_damaged_too_heals_the_rest(
    model: Path, golden: Path, manifest: Path
) -> None:
    damage(model)
    overwrite(model / "model-00001-of-00002.safetensors", 300, os.urandom(5000))
    flip(golden / "model-00002-of-00002.safetensors", 2 * MIB + 11_000)
    before = contents(model)
    outcome = heal(model, manifest, golden)
    assert not outcome.healed
    assert [t.tensor for t in outcome.tensors] == ["a"]
    assert outcome.refused == ("c",)
    after = contents(model)
    name = "model-00002-of-00002.safetensors"
    assert after[name] == before[name]


def test_a_golden_copy_is_not_asked_when_nothing_is_lost(model: Path, manifest: Path) -> None:
    assert heal(model, manifest, "nosuch://").healed


def test_remote_checkpoints_read_like_local_ones(golden: Path) -> None:
    assert is_remote("s3://x")
    assert is_remote("zip::file:///x")
    assert not is_remote("C/x")
    with open_checkpoint(golden) as local, open_remote(f"file://{golden}") as remote:
        assert [t.name for t in local.tensors] == [t.name for t in remote.tensors]
        for mine, theirs in zip(local.tensors, remote.tensors, strict=True):
            assert mine.read() == theirs.read()
    single = f"file://{golden}/model-00001-of-00002.safetensors"
    with open_remote(single) as remote:
        assert {t.name for t in remote.tensors} == {"a", "b", "n"}
