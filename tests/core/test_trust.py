"""The trust cache: what was read before is not read again, and never without a word."""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors, write_sharded
from weightguard import Report, fingerprint, gate, trust
from weightguard.checkpoint.files import CheckpointFile
from weightguard.errors import WeightguardError
from weightguard.policy.reading import parse_policy

SHARDS = [{f"t.{s}.{n}": random_tensor("BF16", (64, 512), s * 10 + n) for n in range(4)}
          for s in range(3)]  # fmt: skip
NAMES = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trust, "SETTLED_NS", 0)
    return write_sharded(tmp_path / "model", SHARDS)


def judged(model: Path, text: str = "", **options: object) -> Report:
    policy = parse_policy(text, Path("weightguard.toml"))
    source = model.parent / "weightguard.toml"
    return gate(model, policy, source=source, trust_cache=True, **options)  # type: ignore[arg-type]


def trusted(report: Report) -> list[str | None]:
    return [found.location.file for found in report.findings if found.rule == "WG519"]


def codes(report: Report) -> list[str]:
    return [found.rule for found in report.findings if found.rule != "WG519"]


def test_a_second_run_reads_no_weights_and_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = judged(model)
    assert trusted(first) == []
    read = CheckpointFile.read_into
    counts: dict[str, int] = {}

    def counting(file: CheckpointFile, offset: int, buffer: memoryview) -> None:
        counts[file.name] = counts.get(file.name, 0) + len(buffer)
        read(file, offset, buffer)

    monkeypatch.setattr(CheckpointFile, "read_into", counting)
    second = judged(model)
    assert trusted(second) == NAMES
    assert (second.coverage.tensors_checked, second.coverage.tensors_total) == (0, 12)
    assert second.coverage.bytes_checked == 0
    assert all(counts[name] < 8192 for name in NAMES)
    found = next(found for found in second.findings if found.location.file == NAMES[0])
    assert found.evidence["sha256"] == hashlib.sha256((model / NAMES[0]).read_bytes()).hexdigest()


def test_never_without_being_asked(model: Path) -> None:
    judged(model)
    report = gate(model, parse_policy("", Path("p")))
    assert report.findings == ()
    assert report.coverage.tensors_checked == 12


def test_only_the_shard_that_changed_is_read(model: Path) -> None:
    judged(model)
    data = bytearray((model / NAMES[1]).read_bytes())
    data[-2:] = b"\xff\xff"
    (model / NAMES[1]).write_bytes(data)
    report = judged(model)
    assert trusted(report) == [NAMES[0], NAMES[2]]
    assert codes(report) == ["WG201"]
    assert report.coverage.tensors_checked == 4


def test_a_change_with_its_time_put_back_is_seen(model: Path) -> None:
    judged(model)
    path = model / NAMES[0]
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\xff\xff")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    report = judged(model)
    assert trusted(report) == NAMES[1:]
    assert codes(report) == ["WG201"]


def test_a_shard_that_changed_a_moment_ago_is_not_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "SETTLED_NS", 2_000_000_000)
    judged(model)
    assert trusted(judged(model)) == []


def test_what_was_found_is_found_again_without_reading(model: Path) -> None:
    damaged = {**SHARDS[0], "t.0.1": ("BF16", (64, 512), bytes(65536))}
    write_safetensors(model / NAMES[0], damaged)
    first, second = judged(model), judged(model)
    assert codes(first) == codes(second) == ["WG203"]
    assert trusted(second) == NAMES


def test_a_manifest_is_compared_with_what_was_kept(model: Path) -> None:
    with fingerprint(model, file_digests=True) as manifest:
        manifest.write(model.parent / "m.json")
    text = 'manifest.path = "m.json"'
    judged(model, text)
    second = judged(model, text)
    assert (codes(second), trusted(second)) == ([], NAMES)
    write_safetensors(model / NAMES[2], {**SHARDS[2], "t.2.0": SHARDS[0]["t.0.0"]})
    with fingerprint(model) as other:
        other.write(model.parent / "m.json")
    write_safetensors(model / NAMES[2], SHARDS[2])
    judged(model, text)
    third = judged(model, text)
    assert trusted(third) == NAMES
    assert codes(third) == ["WG401"]


def test_drift_is_kept_with_the_base_it_was_measured_from(model: Path) -> None:
    base = model.parent / "base"
    write_sharded(base, SHARDS)
    moved = random_tensor("BF16", (64, 512), 99)
    write_safetensors(model / NAMES[0], {**SHARDS[0], "t.0.0": moved})
    text = 'drift.base = "base"'
    assert codes(judged(model, text)) == ["WG602"]
    second = judged(model, text)
    assert (codes(second), trusted(second)) == (["WG602"], NAMES)
    write_safetensors(base / NAMES[1], {**SHARDS[1], "t.1.0": moved})
    third = judged(model, text)
    assert (codes(third), trusted(third)) == (["WG602", "WG602"], [])


def entries(model: Path) -> set[str]:
    folder = model.parent / "cache" / "weightguard" / "trust"
    return {path.name for path in folder.iterdir()}


def test_what_was_read_serves_every_policy_and_is_judged_by_each(model: Path) -> None:
    damaged = {**SHARDS[0], "t.0.1": ("BF16", (64, 512), bytes(65536))}
    write_safetensors(model / NAMES[0], damaged)
    lenient, strict = 'rules.ignore = ["WG203"]', "limits.tensors = 0"
    assert codes(judged(model, lenient)) == []
    before = entries(model)
    for text, found in ((strict, ["WG203", "WG515"]), (lenient, [])):
        report = judged(model, text)
        assert (codes(report), trusted(report)) == (found, NAMES)
    assert entries(model) == before


def test_another_version_counts_for_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(model)
    monkeypatch.setattr(sys.modules["weightguard.gate"], "VERSION", "99")
    assert trusted(judged(model)) == []


def test_two_bases_and_two_digests_keep_their_entries(model: Path) -> None:
    moved = {**SHARDS[0], "t.0.0": random_tensor("BF16", (64, 512), 99)}
    for base, first in (("one", SHARDS[0]), ("two", moved)):
        write_sharded(model.parent / base, [first, *SHARDS[1:]])
    with fingerprint(model, digest="sha256") as manifest:
        manifest.write(model.parent / "m.json")
    policies = {
        'drift.base = "one"': [],
        'drift.base = "two"': ["WG602"],
        'manifest.path = "m.json"': [],
    }
    for text in policies:
        assert trusted(judged(model, text)) == []
    for text, found in policies.items():
        report = judged(model, text)
        assert (codes(report), trusted(report)) == (found, NAMES)


def test_old_entries_of_a_shard_make_room(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "KEPT_ENTRIES", 2)
    versions, sizes = ("1", "2", "3"), []
    for version in versions:
        monkeypatch.setattr(sys.modules["weightguard.gate"], "VERSION", version)
        judged(model)
        sizes.append(len(entries(model)))
    assert sizes == [9, 18, 18]  # manifest, sidecar and state of three shards
    for version in versions[1:]:
        monkeypatch.setattr(sys.modules["weightguard.gate"], "VERSION", version)
        assert trusted(judged(model)) == NAMES


def test_two_runs_fill_one_cache_at_once(model: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        reports = [*pool.map(lambda _: judged(model), range(4))]
    assert [codes(report) for report in reports] == [[]] * 4
    assert len(entries(model)) == 9
    assert trusted(judged(model)) == NAMES


@pytest.mark.parametrize("harm", ["empty", "flip", "longer", "link", "absent"])
def test_a_damaged_cache_is_read_past(harm: str, model: Path) -> None:
    judged(model)
    for path in (model.parent / "cache" / "weightguard" / "trust").iterdir():
        data = bytearray(path.read_bytes())
        path.unlink()
        if harm == "link":
            other = path.with_name("x" + path.name)
            other.write_bytes(data)
            path.symlink_to(other)
        elif harm != "absent":
            data[len(data) // 2] ^= 0x10 if harm == "flip" else 0
            path.write_bytes(b"" if harm == "empty" else data + b"x" * (harm == "longer"))
    report = judged(model)
    assert (trusted(report), codes(report)) == ([], [])


def test_a_cache_that_others_can_write_is_refused(model: Path) -> None:
    folder = model.parent / "cache" / "weightguard" / "trust"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(WeightguardError, match="group or others can write it"):
        judged(model)
    folder.rmdir()
    folder.symlink_to(model)
    with pytest.raises(WeightguardError, match=r"is not yours alone|lies in the checkpoint"):
        judged(model)
    folder.unlink()
    folder.parent.chmod(0o777)
    with pytest.raises(WeightguardError, match="others can replace what lies in"):
        judged(model)


def test_a_cache_in_the_checkpoint_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(model))
    with pytest.raises(WeightguardError, match="lies in the checkpoint's folder"):
        judged(model)
    assert not (model / "weightguard").exists()
