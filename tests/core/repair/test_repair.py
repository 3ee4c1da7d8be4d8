"""repair(): what comes back is the original, bit for bit, or nothing changed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import pytest

from tests.checkpoints import random_tensor, write_safetensors, write_sharded
from tests.damaged import MIB, SHARDS, attest, contents, flip, overwrite, parity_of
from tests.repair_cases import (
    FIRST,
    SECOND,
    Case,
    append,
    change_metadata,
    cut,
    cut_and_flip_and_ruin,
    flip_many_rows,
    flip_one,
    full_disk,
    lose_a_block,
    lose_the_index,
    ruin_the_header,
)
from weightguard import Manifest, ManifestError, WeightguardError, verify
from weightguard.repair import Means, repair, repair_in_place


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


PARITY_HEALS = [
    flip_one, flip_many_rows, lose_a_block, ruin_the_header, change_metadata, cut, append,
    cut_and_flip_and_ruin, lose_the_index,
]  # fmt: skip


@pytest.mark.parametrize("damage", PARITY_HEALS)
def test_parity_brings_every_file_back_bit_for_bit(
    case: Case, damage: Callable[[Case], None]
) -> None:
    damage(case)
    outcome = case.repair(case.parity)
    assert outcome.healed
    case.assert_whole(case.output)
    assert case.in_place(case.parity).healed
    case.assert_whole(case.model)


@pytest.mark.parametrize("damage", [flip_one, flip_many_rows])
def test_residues_heal_without_a_second_copy(case: Case, damage: Callable[[Case], None]) -> None:
    damage(case)
    outcome = case.repair(case.plain)
    assert outcome.healed
    assert [set(t.blocks) for t in outcome.tensors] == [{"residues"}]
    case.assert_whole(case.output)


def test_what_was_healed_by_what_is_told(case: Case) -> None:
    cut_and_flip_and_ruin(case)
    outcome = case.repair(case.parity)
    assert {t.tensor: t.blocks for t in outcome.tensors} == {
        "c": {"parity": 1},
        "n": {"residues": 1},
    }
    assert [(c.file, c.nbytes) for c in outcome.containers] == [(SECOND, 40)]
    assert outcome.copied == ("sub/notes.txt", "tokenizer.json")
    assert outcome.output == str(case.output)
    assert outcome.report.checkpoint == str(case.output)


def test_a_sound_checkpoint_is_copied_and_in_place_left_alone(case: Case) -> None:
    outcome = case.in_place(case.parity)
    assert (outcome.healed, outcome.output, outcome.tensors) == (True, None, ())
    outcome = case.repair(case.parity)
    assert outcome.healed
    case.assert_whole(case.output)


def test_two_lost_blocks_of_a_group_stay_lost_and_nothing_is_written(case: Case) -> None:
    lose_a_block(case)
    overwrite(case.second, 4 * MIB, os.urandom(300_000))
    before = contents(case.model)
    outcome = case.repair(case.parity)
    assert not outcome.healed
    assert outcome.report.complete
    assert outcome.output is None
    assert not case.output.exists()
    assert case.in_place(case.parity).output is None
    assert contents(case.model) == before


def test_what_can_be_healed_is_and_the_rest_stays_as_it_was(case: Case) -> None:
    flip_one(case)
    lose_a_block(case)
    overwrite(case.second, 4 * MIB, os.urandom(300_000))
    damaged = case.second.read_bytes()
    outcome = case.repair(case.parity)
    assert [t.tensor for t in outcome.tensors] == ["n"]
    assert [f.location.tensor for f in outcome.report.findings] == ["c"]
    assert (case.output / SECOND).read_bytes() == damaged
    assert (case.output / FIRST).read_bytes() == (case.sound / FIRST).read_bytes()


def test_a_cut_file_that_cannot_be_filled_is_not_made_longer(case: Case) -> None:
    os.truncate(case.second, 3 * MIB)
    flip_one(case)
    assert not case.in_place(case.parity).healed
    assert case.second.stat().st_size == 3 * MIB


def test_another_model_under_the_same_names_stays_as_it_is(case: Case, tmp_path: Path) -> None:
    for name in (FIRST, SECOND):
        tensors = {"other": random_tensor("F32", (500, 300), 9)}
        write_safetensors(case.model / name, tensors)
    before = contents(case.model)
    outcome = case.in_place(case.parity)
    assert not outcome.healed
    assert contents(case.model) == before
    assert case.repair(case.parity).output is None


def test_parity_serves_a_checkpoint_of_other_sharding(case: Case, tmp_path: Path) -> None:
    one = tmp_path / "one.safetensors"
    write_safetensors(one, {n: t for shard in reversed(SHARDS) for n, t in shard.items()})
    whole = one.read_bytes()
    overwrite(one, 5 * MIB + 100_000, bytes(200_000))
    with Manifest.read(case.parity) as manifest:
        outcome = repair(one, manifest, tmp_path / "new.safetensors", Means(threads=1))
    assert outcome.healed
    assert (tmp_path / "new.safetensors").read_bytes() == whole


def test_a_missing_shard_needs_more_than_parity_has(case: Case) -> None:
    case.second.unlink()
    assert not case.in_place(case.parity).healed
    assert not case.second.exists()


def test_a_missing_small_shard_is_rebuilt(tmp_path: Path) -> None:
    sound = write_sharded(
        tmp_path / "sound",
        [{"a": random_tensor("U8", (3 * MIB,), 1)}, {"b": random_tensor("F32", (300,), 2)}],
    )
    manifest = attest(sound, tmp_path / "m.weightguard.json", parity=True)
    before = contents(sound)
    (sound / SECOND).unlink()
    with Manifest.read(manifest) as read:
        outcome = repair_in_place(sound, read)
    assert outcome.healed
    assert contents(sound) == before


def test_damage_to_parity_is_said_before_anything_is_done(case: Case) -> None:
    lose_a_block(case)
    flip(parity_of(case.parity), 100_000)
    before = contents(case.model)
    with pytest.raises(ManifestError, match="--no-parity"):
        case.in_place(case.parity)
    parity_of(case.parity).unlink()
    with pytest.raises(ManifestError, match="parity"):
        case.repair(case.parity)
    assert contents(case.model) == before
    assert not case.output.exists()
    overwrite(
        case.second,
        2 * MIB + 10_000,
        (case.sound / SECOND).read_bytes()[2 * MIB + 10_000 :][:300_000],
    )
    flip_one(case)
    assert case.repair(case.parity, parity=False).healed


def test_a_parity_that_is_wrong_in_itself_heals_nothing(case: Case) -> None:
    """A manifest whose parity was made up, with digests that fit: blocks do not, so no change."""
    path = parity_of(case.parity)
    data = bytearray(path.read_bytes())
    data[-MIB:] = os.urandom(MIB)
    path.write_bytes(data)
    document = json.loads(case.parity.read_text())
    document["parity"]["digest"] = f"blake3:{blake3.blake3(data).hexdigest()}"
    case.parity.write_text(json.dumps(document))
    lose_a_block(case)
    before = contents(case.model)
    assert not case.in_place(case.parity).healed
    assert contents(case.model) == before


@pytest.mark.parametrize("where", ["same", "inside", "exists", "parent", "nowhere"])
def test_an_output_that_would_do_harm_is_refused(case: Case, tmp_path: Path, where: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    case.output = {
        "same": case.model,
        "inside": case.model / "sub" / "new",
        "exists": tmp_path / "taken",
        "parent": tmp_path,
        "nowhere": tmp_path / "no" / "folder",
    }[where]
    with pytest.raises(WeightguardError):
        case.repair(case.parity)


def test_links_out_of_the_folder_are_not_followed(case: Case, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (case.model / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(case.model / "pipe")
    flip_one(case)
    with Manifest.read(case.plain) as manifest:
        outcome = repair(case.model, manifest, case.output, Means(threads=1))
    assert outcome.left_out == 2
    assert not (case.output / "link").exists()
    case.assert_whole(case.output)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_leaves_nothing_behind(
    case: Case, monkeypatch: pytest.MonkeyPatch, call: str, tmp_path: Path
) -> None:
    lose_a_block(case)
    before, around = contents(case.model), {p.name for p in tmp_path.iterdir()}
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(WeightguardError, match=os.strerror(errno.ENOSPC)):
        case.repair(case.parity)
    with pytest.raises(WeightguardError, match=os.strerror(errno.ENOSPC)):
        case.in_place(case.parity)
    monkeypatch.undo()
    assert contents(case.model) == before
    assert {p.name for p in tmp_path.iterdir()} == around
    assert case.in_place(case.parity).healed
    case.assert_whole(case.model)


def test_unreadable_sectors_are_damage_like_any_other(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = (case.second.stat().st_ino, 3 * MIB + 9000)
    plain = os.preadv

    def failing(descriptor: int, buffers: Any, offset: int, *rest: Any) -> int:
        size = sum(len(b) for b in buffers)
        if os.fstat(descriptor).st_ino == bad[0] and offset <= bad[1] < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(descriptor, buffers, offset, *rest)

    monkeypatch.setattr(os, "preadv", failing)
    assert case.repair(case.parity).healed
    monkeypatch.undo()
    case.assert_whole(case.output)


def test_an_unreadable_container_without_parity_is_a_finding(case: Case) -> None:
    ruin_the_header(case)
    outcome = case.repair(case.plain)
    assert not outcome.report.complete
    assert outcome.output is None


def test_row_residues_do_not_mistake_two_changes_for_one(case: Case) -> None:
    """Two changed elements of a row: the block's digest refuses what the residues suggest."""
    flip(case.second, 1000, 3)
    flip(case.second, 1400, 3)
    before = contents(case.model)
    assert not case.in_place(case.plain).healed
    assert contents(case.model) == before
    assert verify(case.sound, case.plain).findings == ()
