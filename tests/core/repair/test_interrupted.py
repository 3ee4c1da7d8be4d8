"""Repairs in place that were interrupted, refused or overtaken: what is finished, what left."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import write_safetensors, write_sharded
from tests.damaged import MIB, SHARDS, attest, contents, flip
from tests.repair_cases import (
    FIRST,
    SECOND,
    Case,
    cut,
    cut_and_flip_and_ruin,
    flip_one,
    full_disk,
    lose_a_block,
    ruin_the_header,
)
from weightguard import Manifest, WeightguardError, audit, verify
from weightguard.repair import repair_in_place


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


JOURNAL = ".weightguard-repair.journal"


def test_a_target_that_cannot_be_written_is_said_before_a_journal_is_there(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_a_block(case)
    before = contents(case.model)
    plain_open = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_RDWR and str(path).endswith(".safetensors"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return plain_open(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(WeightguardError, match=f"{SECOND}.*Read-only"):
        case.in_place(case.parity)
    assert contents(case.model) == before


def test_a_link_that_the_user_names_is_refused_before_a_journal_is_there(
    case: Case, tmp_path: Path
) -> None:
    one = write_safetensors(tmp_path / "one.safetensors", SHARDS[0])
    manifest = attest(one, tmp_path / "one.weightguard.json")
    flip(one, one.stat().st_size - 9)
    before = one.read_bytes()
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "one.safetensors"
    link.symlink_to(one)
    with Manifest.read(manifest) as read:
        with pytest.raises(WeightguardError, match=r"real path.*-o"):
            repair_in_place(link, read)
        assert one.read_bytes() == before
        assert [path.name for path in (tmp_path / "links").iterdir()] == [link.name]
        assert repair_in_place(one, read).healed


def interrupted(case: Case, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Repair in place, on a disk that takes only a part of the last write before it fails."""
    plain, lengths = os.pwrite, []

    def torn(descriptor: int, data: Any, offset: int) -> int:
        if os.fstat(descriptor).st_ino not in inodes:
            return plain(descriptor, data, offset)
        lengths.append(plain(descriptor, data[: len(data) // 2], offset))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    inodes = {case.first.stat().st_ino, case.second.stat().st_ino}
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", torn)
        with pytest.raises(WeightguardError, match="goes on from its journal"):
            case.in_place(case.parity)
    assert lengths
    left = contents(case.model)
    assert JOURNAL in left
    return left


def test_a_write_that_fails_is_said_and_goes_on_later(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_and_flip_and_ruin(case)
    interrupted(case, monkeypatch)
    assert not verify(case.model, case.parity).complete
    outcome = case.in_place(case.parity)
    assert (outcome.healed, outcome.resumed, outcome.discarded) == (True, True, False)
    case.assert_whole(case.model)


def test_a_journal_does_not_touch_a_file_that_was_fetched_again(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sound file equals what is to be written; the other one is finished."""
    flip_one(case)
    lose_a_block(case)
    interrupted(case, monkeypatch)
    shutil.copyfile(case.sound / SECOND, case.second)
    stamp = case.second.stat().st_mtime_ns
    outcome = case.in_place(case.parity)
    assert (outcome.healed, outcome.resumed) == (True, True)
    assert case.second.stat().st_mtime_ns == stamp
    case.assert_whole(case.model)


def test_damage_since_a_file_was_fetched_again_is_found_anew(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_a_block(case)
    interrupted(case, monkeypatch)
    shutil.copyfile(case.sound / SECOND, case.second)
    flip(case.second, 5 * MIB)
    assert case.in_place(case.parity).healed
    case.assert_whole(case.model)


def test_a_file_of_another_model_is_refused_and_left_alone(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_a_block(case)
    interrupted(case, monkeypatch)
    data = bytearray((case.sound / SECOND).read_bytes())
    data[2 * MIB : 4 * MIB] = os.urandom(2 * MIB)
    case.second.write_bytes(data)
    left = contents(case.model)
    with pytest.raises(WeightguardError, match=f"{SECOND}.*replaced.*Delete"):
        case.in_place(case.parity)
    assert contents(case.model) == left
    (case.model / JOURNAL).unlink()
    assert not case.in_place(case.parity).healed
    assert case.second.read_bytes() == data


@pytest.mark.parametrize("weights", ["same", "other"])
def test_a_journal_of_what_is_there_no_more_is_discarded_where_all_is_as_attested(
    case: Case, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    ruin_the_header(case)
    interrupted(case, monkeypatch)
    other = write_sharded(case.model.parent / "other", [SHARDS[0], {"c": SHARDS[0]["b"]}])
    # the same tensors under other metadata, or other ones
    data = (case.sound / SECOND).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].rstrip()[:-1] + b',"__metadata__":{"format":"tf"}}'
    same = len(header).to_bytes(8, "little") + header + data[8 + size :]
    shutil.copytree(other, case.model, dirs_exist_ok=True)
    manifest = attest(other, case.model.parent / "other.weightguard.json")
    if weights == "same":
        shutil.copytree(case.sound, case.model, dirs_exist_ok=True)
        case.second.write_bytes(same)
        manifest = case.plain
    before = contents(case.model)
    outcome = case.in_place(manifest)
    assert (outcome.healed, outcome.discarded, outcome.resumed) == (True, True, False)
    del before[JOURNAL]
    assert contents(case.model) == before


def test_a_journal_of_other_weights_stays_where_its_files_are_not_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models in one folder: that one of them is sound says nothing of the other."""
    paths, manifests = [], []
    for number in (0, 1):
        paths.append(write_safetensors(tmp_path / f"{number}.safetensors", SHARDS[number]))
        manifests.append(attest(paths[-1], tmp_path / f"{number}.weightguard.json"))
    flip(paths[0], paths[0].stat().st_size - 9)
    with monkeypatch.context() as patch, Manifest.read(manifests[0]) as read:
        patch.setattr("weightguard.repair.run.apply_journal", lambda *_: False)
        repair_in_place(paths[0], read)
    assert [found.rule for found in audit(paths[0]).findings] == ["WG123"]
    assert audit(paths[1]).findings == ()
    with (
        Manifest.read(manifests[1]) as read,
        pytest.raises(WeightguardError, match="other weights"),
    ):
        repair_in_place(paths[1], read)
    with Manifest.read(manifests[0]) as read:
        assert repair_in_place(paths[0], read).resumed
    assert audit(paths[0]).findings == ()


def test_a_disk_too_full_to_grow_leaves_everything_as_it_was(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(case)
    before = contents(case.model)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full_disk)
        with pytest.raises(WeightguardError, match=r"400,000 bytes.*They are as they were"):
            case.in_place(case.parity)
    assert contents(case.model) == before
    assert case.in_place(case.parity).healed
    case.assert_whole(case.model)


def test_a_shard_that_stays_missing_is_not_made_for_the_sake_of_another(case: Case) -> None:
    case.second.unlink()
    flip_one(case)
    outcome = case.in_place(case.parity)
    assert [t.tensor for t in outcome.tensors] == ["n"]
    assert not case.second.exists()
    assert case.first.read_bytes() == (case.sound / FIRST).read_bytes()


def test_a_journal_is_no_part_of_a_new_checkpoint(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_a_block(case)
    interrupted(case, monkeypatch)
    assert case.repair(case.parity).healed
    case.assert_whole(case.output)


@pytest.mark.parametrize("named", ["folder", "file"])
def test_blobs_of_a_hub_cache_are_written_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    repository = tmp_path / "models--org--model"
    snapshot, blob = repository / "snapshots" / ("0" * 40), repository / "blobs" / ("1" * 40)
    for folder in (snapshot, blob.parent):
        folder.mkdir(parents=True)
    write_safetensors(blob, SHARDS[1])
    link = snapshot / "model.safetensors"
    link.symlink_to(f"../../blobs/{blob.name}")
    path = snapshot if named == "folder" else link
    manifest = attest(path, tmp_path / "m.weightguard.json")
    sound = blob.read_bytes()
    flip(blob, MIB)
    with Manifest.read(manifest) as read:
        with monkeypatch.context() as patch:
            patch.setattr("weightguard.repair.run.apply_journal", lambda *_: False)
            assert not repair_in_place(path, read).healed
        assert "WG123" in {found.rule for found in audit(path).findings}
        outcome = repair_in_place(path, read)
    assert (outcome.healed, outcome.resumed) == (True, True)
    assert blob.read_bytes() == sound
    assert link.is_symlink()
    assert [entry.name for entry in snapshot.iterdir()] == [link.name]
