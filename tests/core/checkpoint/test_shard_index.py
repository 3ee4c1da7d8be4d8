"""Shard indexes: what they may say, and how they are compared with the shards."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import Tensors, random_tensor, write_safetensors, write_sharded
from weightguard import audit
from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.files import Folder
from weightguard.checkpoint.shard_index import MAX_SHARDS, ShardIndex, check_index, read_index
from weightguard.errors import CheckpointError
from weightguard.finding import Finding

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDS: list[Tensors] = [
    {"a": random_tensor("BF16", (8, 64)), "b": random_tensor("F32", (4,), 1)},
    {"c": random_tensor("F16", (64,), 2)},
]
TOTAL = 8 * 64 * 2 + 16 + 128


def read(folder: Path, value: Any) -> ShardIndex:
    (folder / INDEX).write_text(value if isinstance(value, str) else json.dumps(value))
    opened = Folder(folder)
    try:
        return read_index(opened.open(INDEX))
    finally:
        opened.close()


def findings(folder: Path) -> list[Finding]:
    with open_checkpoint(folder) as checkpoint:
        return list(checkpoint.findings)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / INDEX
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_sound_index(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.findings == ()
        assert [t.name for t in checkpoint.tensors] == ["a", "b", "c"]
        assert [t.shard for t in checkpoint.tensors] == [FIRST, FIRST, SECOND]
        assert [bytes(t.read()) for t in checkpoint.tensors] == [
            data for shard in SHARDS for _, _, data in shard.values()
        ]
        assert [file.name for file in checkpoint.files] == [INDEX, FIRST, SECOND]


@pytest.mark.parametrize(
    ("total", "sound"),
    [
        (TOTAL, True),
        (float(TOTAL), True),
        (None, True),
        (TOTAL + 1, False),
        (TOTAL - 1, False),
        (0, False),
        (-TOTAL, False),
        (TOTAL + 0.5, False),
        (str(TOTAL), False),
        ([TOTAL], False),
        (10**4000, False),
    ],
)
def test_the_total(tmp_path: Path, total: Any, sound: bool) -> None:
    write_sharded(tmp_path, SHARDS)
    rewrite(tmp_path, metadata={"total_size": total})
    found = findings(tmp_path)
    assert [f.rule for f in found] == ([] if sound else ["WG109"])
    assert all(len(f.message) < 500 for f in found)


def test_a_total_nested_to_the_parsers_limit(tmp_path: Path) -> None:
    for depth in range(900, 1000, 7):
        text = '{"weight_map":{"a":"b"},"metadata":{"total_size":' + "[" * depth + "]" * depth
        try:
            rules = [f.rule for f in read(tmp_path, text + "}}").findings]
        except CheckpointError as error:
            rules = [error.finding.rule]
        assert rules == ["WG109"]


@pytest.mark.parametrize("metadata", [None, [], 1, {"total_size": None}, {"other": 1}])
def test_metadata_need_not_hold_a_total(tmp_path: Path, metadata: Any) -> None:
    index = read(tmp_path, {"metadata": metadata, "weight_map": {"a": "b"}})
    assert (index.total_size, index.findings, index.shards) == (None, (), ("b",))


def test_contradictions_name_the_tensors(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    rewrite(tmp_path, weight_map={"a": SECOND, "b": FIRST, "d": SECOND})
    found = findings(tmp_path)
    assert {f.rule for f in found} == {"WG109"}
    assert [f.location.tensor for f in found] == ["d", "c", "a"]
    assert all(f.location.file == INDEX for f in found)
    assert all(f.evidence == {"count": 1, "tensors": [f.location.tensor]} for f in found)


def test_a_missing_shard_leaves_the_others_readable(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    (tmp_path / FIRST).unlink()
    with open_checkpoint(tmp_path) as checkpoint:
        (found,) = checkpoint.findings
        assert [t.name for t in checkpoint.tensors] == ["c"]
        assert checkpoint.unread == 2
    report = audit(tmp_path)
    assert report.complete
    coverage = report.coverage
    assert (coverage.tensors_checked, coverage.tensors_total, coverage.tensors_unread) == (1, 3, 2)
    assert (coverage.bytes_checked, coverage.bytes_total) == (128, 128)
    assert (found.rule, found.location.file, found.evidence) == ("WG109", FIRST, {"tensors": 2})


def test_a_tensor_in_two_shards_is_read_where_the_index_says(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    other = random_tensor("F16", (64,), 9)
    write_safetensors(tmp_path / FIRST, {**SHARDS[0], "c": other})
    with open_checkpoint(tmp_path) as checkpoint:
        (tensor,) = [t for t in checkpoint.tensors if t.name == "c"]
        assert tensor.shard == SECOND
        assert bytes(tensor.read()) == SHARDS[1]["c"][2]
        repeated = [f for f in checkpoint.findings if f.rule == "WG104"]
    assert [(f.location.file, f.location.tensor) for f in repeated] == [(FIRST, "c")]


def test_an_extra_shard_and_what_is_none(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    (tmp_path / "other.safetensors").touch()
    (tmp_path / "tokenizer.model").touch()
    (tmp_path / "notes.txt").touch()
    (found,) = findings(tmp_path)
    assert (found.rule, found.location.file) == ("WG121", "other.safetensors")


def test_shards_of_several_formats(tmp_path: Path) -> None:
    write_sharded(tmp_path, SHARDS)
    (tmp_path / FIRST).rename(tmp_path / "odd")
    (tmp_path / FIRST).write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


def test_shard_names_are_plain(tmp_path: Path) -> None:
    for shard in ("", ".", "..", "../x", "/x", "sub/x", "a\\b", "a\0b"):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path, {"weight_map": {"a": shard}})
        assert caught.value.finding.rule == "WG110"


def test_limits(tmp_path: Path) -> None:
    many = {f"t{n}": f"s{n}" for n in range(MAX_SHARDS + 1)}
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, {"weight_map": many})
    assert caught.value.finding.rule == "WG116"


def test_missing_shards_cost_linear_time_and_few_findings(tmp_path: Path) -> None:
    shards = [f"s{n}.safetensors" for n in range(MAX_SHARDS)]
    weight_map = {f"t{n}": shards[n % MAX_SHARDS] for n in range(200_000)}
    index = ShardIndex(INDEX, weight_map, None)
    started = time.process_time()
    found = list(check_index(index, {}, shards))
    assert time.process_time() - started < 5
    assert len(found) <= 100
    assert {f.rule for f in found} == {"WG109"}
