"""Files written where they lie: only those that a journal was made for, from any point on."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightguard import WeightguardError
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.unfinished import JOURNAL
from weightguard.repair import inplace
from weightguard.repair.image import Image, PatchStore
from weightguard.repair.inplace import (
    JournalMisfitError,
    NoRoomError,
    apply_journal,
    check_writable,
)
from weightguard.repair.journal import write_journal

WEIGHTS = "0" * 64
OLD = bytes(range(100))
NEW = OLD[:10] + b"abc" + OLD[13:] + bytes(10) + b"0123456789"
"""What ``grown`` becomes; ``cut`` becomes half of it."""


def journal_of(folder: Path, name: str, old: bytes | None, new: bytes) -> None:
    """Write a journal that makes ``new`` of the file ``name`` with the bytes ``old``."""
    file = None
    if old is not None:
        (folder / name).write_bytes(old)
        file = CheckpointFile(folder / name, name)
    image = Image(name, file, len(new), PatchStore())
    if old is None or len(new) >= len(old):
        image.patch(8, new[8:15], 0)
        image.patch(100, new[100:], None)
    if old is None:
        image.patch(0, new[:8], 0)
        image.patch(15, new[15:100], 0)
    write_journal(folder, [image], WEIGHTS)
    if file is not None:
        file.close()


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """Return a file of 100 bytes beside a journal that changes three and appends 20."""
    journal_of(tmp_path, "f", OLD, NEW)
    return tmp_path / "f"


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """Return a file of 100 bytes beside a journal that cuts it to 50."""
    journal_of(tmp_path, "f", OLD, OLD[:50])
    return tmp_path / "f"


@pytest.fixture
def missing(tmp_path: Path) -> Path:
    """Return a file that is not there beside a journal that makes it."""
    journal_of(tmp_path, "f", None, NEW)
    return tmp_path / "f"


def test_it_is_carried_out_and_removed(grown: Path) -> None:
    assert apply_journal(grown.parent, WEIGHTS)
    assert grown.read_bytes() == NEW
    assert not (grown.parent / JOURNAL).exists()
    assert not apply_journal(grown.parent, WEIGHTS)


def test_a_file_is_cut_and_a_missing_one_is_made(cut: Path) -> None:
    assert apply_journal(cut.parent, WEIGHTS)
    assert cut.read_bytes() == OLD[:50]


def test_a_missing_file_is_made(missing: Path) -> None:
    assert apply_journal(missing.parent, WEIGHTS)
    assert missing.read_bytes() == NEW


def test_twice_is_once(grown: Path) -> None:
    journal = (grown.parent / JOURNAL).read_bytes()
    apply_journal(grown.parent, WEIGHTS)
    (grown.parent / JOURNAL).write_bytes(journal)
    stamp = grown.stat().st_mtime_ns
    assert apply_journal(grown.parent, WEIGHTS)
    assert grown.read_bytes() == NEW
    assert grown.stat().st_mtime_ns == stamp


def test_every_mixture_of_old_and_new_bytes_is_completed(grown: Path) -> None:
    journal = (grown.parent / JOURNAL).read_bytes()
    choose = random.Random(1)
    padded = OLD + bytes(20)
    for size in (100, 101, 113, 120):
        for _ in range(50):
            torn = bytes(choose.choice(pair) for pair in zip(padded, NEW, strict=True))
            grown.write_bytes(torn[:size])
            (grown.parent / JOURNAL).write_bytes(journal)
            assert apply_journal(grown.parent, WEIGHTS)
            assert grown.read_bytes() == NEW


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]


OTHERS: list[Callable[[], bytes | None]] = [
    lambda: changed(OLD, 11),
    lambda: changed(OLD, 9),
    lambda: changed(OLD, 99),
    lambda: changed(NEW, 11),
    lambda: OLD + b"\0" * 5 + b"\1",
    lambda: OLD[:99],
    lambda: NEW + b"x",
    lambda: b"",
    lambda: os.urandom(100),
    lambda: os.urandom(120),
    lambda: None,
]  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_any_other_file_is_left_alone(grown: Path, other: Callable[[], bytes | None]) -> None:
    data = other()
    grown.unlink()
    if data is not None:
        grown.write_bytes(data)
    before = (grown.parent / JOURNAL).read_bytes()
    with pytest.raises(JournalMisfitError, match=r"'f'.*Nothing was written.*Delete") as raised:
        apply_journal(grown.parent, WEIGHTS)
    assert raised.value.files == {"f"}
    assert (grown.read_bytes() if data is not None else None) == data
    assert grown.exists() == (data is not None)
    assert (grown.parent / JOURNAL).read_bytes() == before


def test_a_file_that_shares_only_the_changed_bytes_is_another_one(tmp_path: Path) -> None:
    """A bias that is zero here and there: the rest of the file tells them apart."""
    data = os.urandom(200)
    journal_of(tmp_path, "f", data[:8] + bytes(7) + data[15:100], data[:100] + bytes(20))
    stranger = data[100:108] + bytes(7) + data[115:200]
    (tmp_path / "f").write_bytes(stranger)
    with pytest.raises(JournalMisfitError):
        apply_journal(tmp_path, WEIGHTS)
    assert (tmp_path / "f").read_bytes() == stranger


@pytest.mark.parametrize("data", [OLD[:60], changed(OLD, 70), changed(OLD, 20), OLD[:49]])
def test_only_what_was_to_be_cut_is_cut(cut: Path, data: bytes) -> None:
    cut.write_bytes(data)
    with pytest.raises(JournalMisfitError):
        apply_journal(cut.parent, WEIGHTS)
    assert cut.read_bytes() == data


def test_a_file_that_came_where_one_was_missing_is_left_alone(missing: Path) -> None:
    missing.write_bytes(b"another")
    with pytest.raises(JournalMisfitError):
        apply_journal(missing.parent, WEIGHTS)
    assert missing.read_bytes() == b"another"
    missing.write_bytes(NEW[:60])
    assert apply_journal(missing.parent, WEIGHTS)
    assert missing.read_bytes() == NEW


def test_no_file_is_written_where_one_of_them_is_another(tmp_path: Path) -> None:
    images = []
    for name in "fg":
        (tmp_path / name).write_bytes(OLD)
        images.append(Image(name, CheckpointFile(tmp_path / name, name), 100, PatchStore()))
        images[-1].patch(10, b"abc", 0)
    write_journal(tmp_path, images, WEIGHTS)
    (tmp_path / "g").write_bytes(bytes(100))
    with pytest.raises(JournalMisfitError):
        apply_journal(tmp_path, WEIGHTS)
    assert (tmp_path / "f").read_bytes() == OLD
    # what is to be there is no reason to refuse, whatever else the file holds
    sound = NEW[:50] + bytes(50)
    (tmp_path / "g").write_bytes(sound)
    assert apply_journal(tmp_path, WEIGHTS)
    assert (tmp_path / "f").read_bytes() == NEW[:100]
    assert (tmp_path / "g").read_bytes() == sound


def test_that_of_other_weights_is_refused(grown: Path) -> None:
    with pytest.raises(JournalMisfitError, match="other weights"):
        apply_journal(grown.parent, "1" * 64)
    assert grown.read_bytes() == OLD


def test_a_link_out_of_the_folder_is_not_written_through(grown: Path, tmp_path: Path) -> None:
    outside = tmp_path.parent / "outside"
    outside.write_bytes(OLD)
    grown.unlink()
    grown.symlink_to(outside)
    with pytest.raises(WeightguardError, match="real path"):
        check_writable(grown.parent, ["f"])
    with pytest.raises(WeightguardError, match="real path"):
        apply_journal(grown.parent, WEIGHTS)
    assert outside.read_bytes() == OLD


def test_a_pipe_is_not_written_to(grown: Path) -> None:
    grown.unlink()
    os.mkfifo(grown)
    with pytest.raises(WeightguardError, match="no regular file"):
        check_writable(grown.parent, ["f"])
    with pytest.raises(WeightguardError, match="no regular file"):
        apply_journal(grown.parent, WEIGHTS)


def test_what_open_refuses_is_said(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only mount, an immutable file: for a test that root may run, at the system call."""
    plain = os.open

    def refusing(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_RDWR and Path(path).name == "f":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return plain(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(WeightguardError, match=r"'f' cannot be written: Read-only.*-o"):
        check_writable(grown.parent, ["f"])


def test_a_file_that_cannot_be_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path, ["not there", "sub/not there"])
    assert not (tmp_path / "sub").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(WeightguardError, match="permissions"):
        check_writable(tmp_path, ["not there"])
    with pytest.raises(WeightguardError):
        check_writable(tmp_path, ["../not there"])


@pytest.mark.parametrize("which", ["grown", "missing"])
def test_a_disk_without_room_leaves_the_file_as_it_was(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path: Path = request.getfixturevalue(which)
    before = path.read_bytes() if path.exists() else None

    def halfway(descriptor: int, start: int, length: int) -> None:
        os.ftruncate(descriptor, start + length // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", halfway)
    with pytest.raises(NoRoomError, match=rf"{120 - len(before or b'')} bytes.*No space left"):
        apply_journal(path.parent, WEIGHTS)
    assert (path.read_bytes() if path.exists() else None) == before
    assert (path.parent / JOURNAL).exists()
    monkeypatch.undo()
    assert apply_journal(path.parent, WEIGHTS)
    assert path.read_bytes() == NEW


def unsupported(*_: int) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_free_space_is_asked_for_where_none_can_be_reserved(
    grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    plain = os.fstatvfs

    def full(descriptor: int) -> Any:
        there = plain(descriptor)
        return os.statvfs_result((*there[:4], 0, *there[5:]))

    monkeypatch.setattr(os, "fstatvfs", full)
    with pytest.raises(NoRoomError):
        apply_journal(grown.parent, WEIGHTS)
    assert grown.read_bytes() == OLD
    monkeypatch.setattr(os, "fstatvfs", plain)
    assert apply_journal(grown.parent, WEIGHTS)
    assert grown.read_bytes() == NEW


def test_a_write_that_fails_keeps_the_journal(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inplace, "_put", unsupported)
    with pytest.raises(OSError, match="not supported"):
        apply_journal(grown.parent, WEIGHTS)
    monkeypatch.undo()
    assert apply_journal(grown.parent, WEIGHTS)
    assert grown.read_bytes() == NEW
