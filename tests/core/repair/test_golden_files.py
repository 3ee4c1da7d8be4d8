"""A golden copy's files in the place of those that cannot be opened, proved before they count."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.damaged import MIB, contents, flip, parity_of
from tests.repair_cases import (
    FIRST,
    SECOND,
    Case,
    cut,
    cut_and_flip_and_ruin,
    full_disk,
    ruin_the_header,
)
from weightguard import Manifest, WeightguardError, fingerprint
from weightguard.repair import Means, Shortfall, repair, repair_in_place


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def lose_a_shard(case: Case) -> None:
    case.second.unlink()


def cut_to_nothing(case: Case) -> None:
    os.truncate(case.second, 3)


def ruin_the_index(case: Case) -> None:
    (case.model / "model.safetensors.index.json").write_text("{")


HEALED = [
    cut, ruin_the_header, cut_and_flip_and_ruin, lose_a_shard, cut_to_nothing, ruin_the_index,
]  # fmt: skip


@pytest.mark.parametrize("damage", HEALED)
def test_a_file_that_cannot_be_opened_is_the_golden_copys(
    case: Case, damage: Callable[[Case], None]
) -> None:
    damage(case)
    golden = str(case.sound)
    assert case.repair(case.plain, golden=golden).healed
    case.assert_whole(case.output)
    assert case.in_place(case.plain, golden=golden).healed
    case.assert_whole(case.model)


def test_only_what_is_lost_is_read_and_told(case: Case) -> None:
    cut(case)
    outcome = case.repair(case.plain, golden=str(case.sound))
    assert [t.blocks for t in outcome.tensors] == [{"golden copy": 1}]
    assert outcome.fetched < MIB
    assert [(c.file, c.source, c.attested) for c in outcome.containers] == []
    ruin_the_header(case)
    (outcome,) = [case.in_place(case.plain, golden=str(case.sound))]
    assert [(c.file, c.nbytes, c.source, c.attested) for c in outcome.containers] == [
        (SECOND, 40, "golden copy", False)
    ]


def test_a_single_file_may_have_another_name(case: Case, tmp_path: Path) -> None:
    golden, here = tmp_path / "golden.safetensors", tmp_path / "here.safetensors"
    shutil.copy(case.sound / SECOND, golden)
    shutil.copy(case.sound / SECOND, here)
    os.truncate(here, 2 * MIB)
    with fingerprint(golden, threads=2) as made:
        outcome = repair(here, made, tmp_path / "new.safetensors", Means(str(golden), threads=2))
        assert outcome.healed
        assert repair_in_place(here, made, Means(str(golden), threads=2)).healed
    assert here.read_bytes() == golden.read_bytes()
    assert (tmp_path / "new.safetensors").read_bytes() == golden.read_bytes()


def damaged_too(golden: Path) -> None:
    flip(golden / SECOND, 5 * MIB)


def cut_too(golden: Path) -> None:
    os.truncate(golden / SECOND, 3 * MIB)


def sharded_otherwise(golden: Path) -> None:
    for path in golden.glob("*.safetensors"):
        path.rename(golden / path.name.replace("-of-00002", "-of-00003"))
    index = golden / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("-of-00002", "-of-00003"))


@pytest.mark.parametrize("spoil", [damaged_too, cut_too, sharded_otherwise])
def test_a_golden_copy_that_is_not_whole_changes_nothing(
    case: Case, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    golden = tmp_path / "golden"
    shutil.copytree(case.sound, golden)
    spoil(golden)
    cut_to_nothing(case)
    before = contents(case.model)
    for heal in (case.repair, case.in_place):
        try:
            assert not heal(case.plain, golden=str(golden)).healed
        except WeightguardError:
            assert spoil is cut_too
        assert contents(case.model) == before
    assert not case.output.exists()


def test_a_file_digest_covers_the_golden_copys_header(case: Case, tmp_path: Path) -> None:
    golden = tmp_path / "golden"
    shutil.copytree(case.sound, golden)
    data = (golden / SECOND).read_bytes()
    length = int.from_bytes(data[:8], "little")
    # eight spaces more: the same tensors in another file
    padded = (length + 8).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 8
    (golden / SECOND).write_bytes(padded + data[8 + length :])
    with fingerprint(case.sound, threads=2, file_digests=True) as made:
        ruin_the_header(case)
        before = contents(case.model)
        assert not repair_in_place(case.model, made, Means(str(golden), threads=2)).healed
        assert contents(case.model) == before
        outcome = repair_in_place(case.model, made, Means(str(case.sound), threads=2))
    assert [c.attested for c in outcome.containers] == [True]
    case.assert_whole(case.model)


def test_a_parity_that_is_damaged_does_not_stand_in_the_way(case: Case) -> None:
    flip(parity_of(case.parity), 1000)
    cut_and_flip_and_ruin(case)
    outcome = case.in_place(case.parity, golden=str(case.sound))
    assert outcome.healed
    assert outcome.unused is not None
    assert "not the one" in outcome.unused
    case.assert_whole(case.model)


def test_what_parity_is_too_little_for_is_counted(case: Case) -> None:
    os.truncate(case.second, 3 * MIB)
    outcome = case.repair(case.parity)
    assert not outcome.healed
    assert outcome.shortfall == Shortfall(blocks=8, groups=1)
    assert case.repair(case.parity, golden=str(case.sound)).shortfall is None


def test_a_mistyped_path_is_told(tmp_path: Path, case: Case) -> None:
    with Manifest.read(case.plain) as read:
        for work in (lambda p: repair(p, read, tmp_path / "o"), lambda p: repair_in_place(p, read)):
            with pytest.raises(WeightguardError, match="does not exist"):
                work(tmp_path / "nosuch")


def test_a_disk_too_full_for_the_journal_names_its_bytes(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(case.first, 5000)
    before = contents(case.model)
    monkeypatch.setattr("weightguard.repair.journal.atomic_write", full_disk)
    with pytest.raises(WeightguardError, match=r"the journal takes [\d,]+ bytes, of which"):
        case.in_place(case.plain)
    assert contents(case.model) == before
    assert FIRST in before
