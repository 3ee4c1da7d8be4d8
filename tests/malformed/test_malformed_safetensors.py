"""Malformed and hostile safetensors files, folders and indexes: one finding each, as listed."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import Tensors, safetensors_bytes, write_safetensors
from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.errors import CheckpointError
from weightguard.finding import Finding

MAX_SECONDS = 60.0
A: Tensors = {"a": ("F32", (2,), bytes(8))}
B: Tensors = {"b": ("F32", (2,), bytes(8))}
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "m-1.safetensors", "m-2.safetensors"

Build = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """``build`` fills a folder, ``path`` in it is opened, ``rule`` is the one finding."""

    id: str
    build: Build
    rule: str
    fatal: bool = True
    path: str = "model.safetensors"


def raw(data: bytes) -> Build:
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


def header(text: str | bytes, data: int = 8) -> Build:
    """Return the builder of a file with the header ``text``, padded, and ``data`` zero bytes."""
    encoded = text if isinstance(text, bytes) else text.encode()
    encoded += b" " * (-len(encoded) % 8)
    return raw(len(encoded).to_bytes(8, "little") + encoded + bytes(data))


def entry(dtype: str = '"F32"', shape: str = "[2]", offsets: str = "[0,8]", more: str = "") -> str:
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}'


def tensor(name: str = "a", data: int = 8, **fields: str) -> Build:
    return header(f'{{"{name}":{entry(**fields)}}}', data)


def tensors(*entries: tuple[str, str], data: int = 8) -> Build:
    return header("{" + ",".join(f'"{name}":{text}' for name, text in entries) + "}", data)


def index_json(weight_map: Any, **metadata: Any) -> str:
    return json.dumps({"metadata": metadata, "weight_map": weight_map})


def sharded(weight_map: Any = None, *, text: str | None = None, **metadata: Any) -> Build:
    """Return the builder of two sound shards and an index, ``text`` in its place if given."""
    listed = {"a": FIRST, "b": SECOND} if weight_map is None else weight_map

    def build(folder: Path) -> None:
        write_safetensors(folder / FIRST, A)
        write_safetensors(folder / SECOND, B)
        (folder / INDEX).write_text(index_json(listed, **metadata) if text is None else text)

    return build


def with_shard(make: Callable[[Path], object]) -> Build:
    """Return the builder of a sharded folder in which ``make`` makes the second shard."""

    def build(folder: Path) -> None:
        sharded()(folder)
        (folder / SECOND).unlink()
        make(folder / SECOND)

    return build


def then(build: Build, change: Build) -> Build:
    return lambda folder: (build(folder), change(folder))


def outside(path: Path) -> None:
    """Make ``path`` a link to a sound file outside the folder."""
    target = path.parent.parent / "secret.safetensors"
    write_safetensors(target, B)
    path.symlink_to(target)


def in_root(make: Callable[[Path], object], name: str = "model.safetensors") -> Build:
    return lambda folder: make(folder / name)


def unix_socket(path: Path) -> None:
    current = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(current)


def cut(count: int) -> Build:
    return raw(safetensors_bytes(A)[:-count])


HUGE = "9" * 5000
ODD = f'{{"a":{entry()}'

FILES = [
    Case("empty-file", raw(b""), "WG102"),
    Case("seven-bytes", raw(b"\x08\0\0\0\0\0\0"), "WG101"),
    Case("eight-bytes", raw(b"\x08\0\0\0\0\0\0\0"), "WG101"),
    Case("html", raw(b"<!DOCTYPE html><html>" * 9), "WG101"),
    Case("git-lfs-pointer", raw(b"version https://git-lfs.github.com/spec/v1\n"), "WG101"),
    Case("header-of-spaces", header(" " * 64), "WG101"),
    Case("header-is-an-array", header("[]"), "WG101"),
    Case("no-header", raw(bytes(100)), "WG101"),
    Case("header-beyond-file", raw((500).to_bytes(8, "little") + b'{"a":1}'), "WG102"),
    Case("header-above-format-limit", raw((1 << 27).to_bytes(8, "little") + b"{}"), "WG116"),
    Case("header-length-wraps", raw(b"\xff" * 8 + b'{"a":{}}'), "WG116"),
    Case("cut-in-header", raw(safetensors_bytes(A)[:40]), "WG102"),
    Case("cut-in-data", cut(1), "WG102"),
    Case("cut-before-data", cut(8), "WG102"),
    Case("header-not-utf-8", header(b'{"\xff":{}}'), "WG103"),
    Case("header-unclosed", header(ODD), "WG103"),
    Case("header-with-comma-at-end", header(ODD + ",}"), "WG103"),
    Case("header-continues", header(ODD + "} x"), "WG103", fatal=False),
    Case("header-padded-with-nul", header(ODD + "}\0\0"), "WG103", fatal=False),
    Case("entry-is-null", tensors(("a", "null")), "WG103"),
    Case("entry-is-a-list", tensors(("a", "[1,2]")), "WG103"),
    Case("entry-is-empty", tensors(("a", "{}")), "WG103"),
    Case("entry-without-shape", tensors(("a", '{"dtype":"F32","data_offsets":[0,8]}')), "WG103"),
    Case("entry-with-extra-key", tensor(more=',"stride":[1]'), "WG103", fatal=False),
    Case("entry-repeats-key", tensor(more=',"shape":[2]'), "WG103"),
    Case("entry-nested-deep", tensors(("a", "[" * 100_000)), "WG103"),
    Case("shape-nested-deep", tensor(shape="[" * 3000 + "]" * 3000), "WG103"),
    Case("entry-without-end", tensors(("a", '{"dtype":"' + "x" * 100_000)), "WG103"),
    Case("name-of-half-a-pair", tensor(name="\\ud800"), "WG103"),
    Case("metadata-is-a-list", header('{"__metadata__":[]}', 0), "WG103", fatal=False),
    Case(
        "metadata-of-numbers", header('{"__metadata__":{"format":1}}', 0), "WG103", fatal=False
    ),
    Case("metadata-unclosed", header('{"__metadata__":{"format":"pt"'), "WG103"),
    Case(
        "duplicate-name",
        tensors(("a", entry()), ("a", entry(offsets="[8,16]")), data=16),
        "WG104",
        fatal=False,
    ),
    Case("hole", tensor(offsets="[8,16]", data=16), "WG105", fatal=False),
    Case("trailing-bytes", tensor(data=9), "WG105", fatal=False),
    Case("data-of-no-tensor", header("{}", 4), "WG105", fatal=False),
    Case(
        "overlap",
        tensors(("a", entry()), ("b", entry(offsets="[4,12]")), data=12),
        "WG105",
        fatal=False,
    ),
    Case(
        "same-range-twice", tensors(("a", entry()), ("b", entry())), "WG105", fatal=False
    ),
    Case(
        "nothing-inside-a-tensor",
        tensors(("a", entry()), ("z", entry(shape="[0]", offsets="[4,4]"))),
        "WG105",
        fatal=False,
    ),
    Case("nothing-after-the-end", tensor(shape="[0]", offsets="[64,64]", data=0), "WG106"),
    Case("beyond-the-end-with-hole", tensor(offsets="[800,808]"), "WG106"),
    Case("offsets-reversed", tensor(offsets="[8,0]"), "WG106"),
    Case("offsets-negative", tensor(offsets="[-8,0]"), "WG106"),
    Case("offsets-wrap", tensor(offsets=f"[{2**64 - 8},{2**64}]"), "WG106"),
    Case("offsets-float", tensor(offsets="[0,8.0]"), "WG106"),
    Case("offsets-boolean", tensor(offsets="[false,8]"), "WG106"),
    Case("offsets-of-three", tensor(offsets="[0,4,8]"), "WG106"),
    Case("offsets-object", tensor(offsets="null"), "WG106"),
    Case("offsets-of-5000-digits", tensor(offsets=f"[0,{HUGE}]"), "WG103"),
    Case("offsets-of-4300-digits", tensor(offsets=f"[0,{'9' * 4300}]"), "WG106"),
    Case("shape-of-4300-digits", tensor(shape=f"[{'9' * 4300}]"), "WG107"),
    Case("shape-negative", tensor(shape="[-2]"), "WG107"),
    Case("shape-float", tensor(shape="[2.0]"), "WG107"),
    Case("shape-boolean", tensor(shape="[true]", offsets="[0,4]", data=4), "WG107"),
    Case("shape-string", tensor(shape='"2"'), "WG107"),
    Case("shape-nan", tensor(shape="[NaN]"), "WG103"),
    Case("shape-product-wraps", tensor(shape=f"[{2**32},{2**32},2]"), "WG107"),
    Case("shape-huge-times-zero", tensor(shape=f"[0,{2**62},{2**62}]", offsets="[0,0]"), "WG107"),
    Case("shape-too-small", tensor(shape="[1]"), "WG107"),
    Case("shape-too-large", tensor(shape="[3]"), "WG107"),
    Case("shape-of-65-dimensions", tensor(shape="[" + "1," * 64 + "2]"), "WG107"),
    Case("half-a-byte", tensor(dtype='"F4"', shape="[3]", offsets="[0,1]", data=1), "WG107"),
    Case("six-bits-over", tensor(dtype='"F6_E2M3"', shape="[5]", offsets="[0,4]"), "WG107"),
    Case("dtype-unknown", tensor(dtype='"F33"'), "WG108"),
    Case("dtype-of-gguf", tensor(dtype='"Q4_0"', shape="[32]", offsets="[0,18]"), "WG108"),
    Case("dtype-lower-case", tensor(dtype='"f32"'), "WG108"),
    Case("dtype-number", tensor(dtype="32"), "WG108"),
    Case("dtype-list", tensor(dtype="[]"), "WG108"),
    Case("name-with-escape", tensor(name="\\u001b[31mred"), "WG115", fatal=False),
    Case("name-with-newline", tensor(name="w\\n::error::x"), "WG115", fatal=False),
    Case("name-with-override", tensor(name="w\\u202egnp"), "WG115", fatal=False),
    Case("name-of-a-megabyte", tensor(name="w" * (1 << 20)), "WG115", fatal=False),
]  # fmt: skip

ENTRIES = [
    Case("fifo", in_root(os.mkfifo), "WG111"),
    Case("folder-as-file", in_root(Path.mkdir), "WG101"),
    Case("socket", in_root(unix_socket), "WG111"),
    Case("link-to-device", in_root(lambda p: p.symlink_to("/dev/zero")), "WG111"),
    Case("dangling-link", in_root(lambda p: p.symlink_to("nowhere")), "WG122"),
    Case("link-to-itself", in_root(lambda p: p.symlink_to(p.name)), "WG122"),
    Case("missing", lambda folder: None, "WG122"),
    Case("missing-folder", lambda folder: None, "WG122", path="no/model.safetensors"),
    Case("folder-without-weights", lambda folder: None, "WG101", path="."),
    Case("folder-with-fifo", in_root(os.mkfifo), "WG111", path="."),
    Case("folder-with-device", in_root(lambda p: p.symlink_to("/dev/zero")), "WG110", path="."),
    Case("folder-with-link-outside", in_root(outside), "WG110", path="."),
    Case(
        "folder-repeats-tensor",
        lambda f: (write_safetensors(f / FIRST, A), write_safetensors(f / SECOND, A)),
        "WG104",
        fatal=False,
        path=".",
    ),
    Case(
        "folder-with-control-characters",
        in_root(lambda p: write_safetensors(p, A), "\x1b[31mx.safetensors"),
        "WG115",
        fatal=False,
        path=".",
    ),
    Case(
        "config-not-json",
        then(raw(safetensors_bytes(A)), lambda f: (f / "config.json").write_text("{")),
        "WG120",
        fatal=False,
        path=".",
    ),
    Case(
        "config-fifo",
        then(raw(safetensors_bytes(A)), lambda f: os.mkfifo(f / "config.json")),
        "WG111",
        fatal=False,
        path=".",
    ),
    Case(
        "config-link-outside",
        then(raw(safetensors_bytes(A)), in_root(outside, "config.json")),
        "WG110",
        fatal=False,
        path=".",
    ),
    Case(
        "config-dangling-link",
        then(raw(safetensors_bytes(A)), in_root(lambda p: p.symlink_to("no"), "config.json")),
        "WG122",
        fatal=False,
        path=".",
    ),
]

INDEXES = [
    Case("index-not-json", sharded(text="{'weight_map'}"), "WG109"),
    Case("index-is-a-list", sharded(text="[]"), "WG109"),
    Case("index-without-map", sharded(text='{"metadata":{}}'), "WG101"),
    Case("index-with-empty-map", sharded({}), "WG109"),
    Case("index-map-is-a-list", sharded(["a"]), "WG109"),
    Case("index-shard-is-a-number", sharded({"a": 1}), "WG109"),
    Case("index-shard-is-null", sharded({"a": None}), "WG109"),
    Case("index-repeats-tensor", sharded(text='{"weight_map":{"a":"x","a":"y"}}'), "WG109"),
    Case("index-repeats-map", sharded(text='{"weight_map":{},"weight_map":{}}'), "WG109"),
    Case("index-nested-deep", sharded(text='{"weight_map":' + "[" * 50_000), "WG109"),
    Case("index-nan", sharded(text='{"weight_map":{"a":NaN}}'), "WG109"),
    Case("index-of-5000-digits", sharded(text=f'{{"total":{HUGE}}}'), "WG109"),
    Case(
        "index-not-utf-8",
        then(sharded(), in_root(lambda p: p.write_bytes(b'{"\xff'), INDEX)),
        "WG109",
    ),
    Case("index-huge", then(sharded(), in_root(lambda p: os.truncate(p, 1 << 40), INDEX)), "WG116"),
    Case("index-all-brackets", sharded(text='{"a":[' + "[]," * 9_000_000 + "1]}"), "WG116"),
    Case("index-fifo", in_root(os.mkfifo, INDEX), "WG111"),
    Case("index-folder", in_root(Path.mkdir, INDEX), "WG111"),
    Case("index-link-outside", in_root(outside, INDEX), "WG110"),
    Case("index-shard-parent", sharded({"a": "../x"}), "WG110"),
    Case("index-shard-hidden-parent", sharded({"a": "x/../../y"}), "WG110"),
    Case("index-shard-absolute", sharded({"a": "/etc/passwd"}), "WG110"),
    Case("index-shard-with-nul", sharded({"a": "x\0y"}), "WG110"),
    Case("index-shard-backslash", sharded({"a": "..\\x"}), "WG110"),
    Case("index-shard-empty", sharded({"a": ""}), "WG110"),
    Case("index-shard-is-the-folder", sharded({"a": "."}), "WG110"),
    Case("index-shard-half-a-pair", sharded(text='{"weight_map":{"a":"\\ud800"}}'), "WG109"),
    Case(
        "index-shard-is-the-index", sharded({"a": FIRST, "b": SECOND, "c": INDEX}), "WG101"
    ),
    Case(
        "index-without-any-shard",
        in_root(lambda p: p.write_text(index_json({"a": "x"})), INDEX),
        "WG109",
    ),
    Case("index-missing-shard", then(sharded(), lambda f: (f / SECOND).unlink()), "WG109", False),
    Case("index-missing-tensor", sharded({"a": FIRST, "b": SECOND, "c": FIRST}), "WG109", False),
    Case("index-misplaced-tensors", sharded({"a": SECOND, "b": FIRST}), "WG109", False),
    Case(
        "index-unlisted-tensor",
        then(sharded(), lambda f: write_safetensors(f / SECOND, {**B, "c": A["a"]})),
        "WG109",
        False,
    ),
    Case(
        "index-tensor-in-two-shards",
        then(sharded(), lambda f: write_safetensors(f / SECOND, {**B, **A})),
        "WG104",
        False,
    ),
    Case("index-wrong-total", sharded(total_size=17), "WG109", False),
    Case("index-total-of-309-digits", sharded(total_size=1e308), "WG109", False),
    Case(
        "index-total-infinite",
        sharded(
            text=index_json({"a": FIRST, "b": SECOND}, total_size=0).replace("0}", "1e999}")
        ),
        "WG109",
        False,
    ),
    Case("index-total-boolean", sharded(total_size=True), "WG109", False),
    Case("index-total-negative", sharded(total_size=-16), "WG109", False),
    Case(
        "index-extra-shard",
        then(sharded(), lambda f: write_safetensors(f / "m-3.safetensors", {"c": A["a"]})),
        "WG121",
        False,
    ),
    Case("shard-folder", with_shard(Path.mkdir), "WG111"),
    Case("shard-fifo", with_shard(os.mkfifo), "WG111"),
    Case("shard-link-to-device", with_shard(lambda p: p.symlink_to("/dev/zero")), "WG110"),
    Case("shard-link-outside", with_shard(outside), "WG110"),
    Case("shard-link-loop", with_shard(lambda p: p.symlink_to(p.name)), "WG122"),
    Case("shard-dangling-link", with_shard(lambda p: p.symlink_to("nowhere")), "WG122"),
    Case("shard-empty", with_shard(Path.touch), "WG102"),
    Case("shard-cut", with_shard(lambda p: p.write_bytes(safetensors_bytes(B)[:-4])), "WG102"),
]  # fmt: skip

CASES = [*FILES, *ENTRIES, *(Case(c.id, c.build, c.rule, c.fatal, ".") for c in INDEXES)]


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def opened(path: Path) -> Checkpoint | Finding | None:
    """Open ``path`` in a thread, so that a hang fails the test instead of stopping the run."""
    results: list[Checkpoint | Finding] = []

    def attempt() -> None:
        try:
            results.append(open_checkpoint(path))
        except CheckpointError as error:
            results.append(error.finding)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    return results[0] if results else None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_each_violation_is_one_finding(tmp_path: Path, case: Case) -> None:
    root = tmp_path / "checkpoint"
    root.mkdir()
    case.build(root)
    before = descriptors()
    started = time.process_time()
    result = opened(root / case.path)
    assert result is not None, "no answer"
    assert time.process_time() - started < MAX_SECONDS
    if isinstance(result, Checkpoint):
        (found,) = result.findings
        result.close()
    else:
        found = result
    assert isinstance(result, Finding) == case.fatal
    assert descriptors() == before
    assert found.rule == case.rule
    assert found.location.file
    assert found.remedy
    assert found.message.isprintable()
    assert len(found.message) < 500
    offset = found.location.offset
    assert offset is None or 0 <= offset < 1 << 64


def test_case_names_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
