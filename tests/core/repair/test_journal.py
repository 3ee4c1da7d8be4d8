"""The journal: carried out once it is whole, refused where it is not ours to carry out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.damaged import flip
from weightguard import WeightguardError
from weightguard.checkpoint.files import CheckpointFile
from weightguard.repair.image import Image, PatchStore
from weightguard.repair.journal import JOURNAL, apply_journal, is_journal, locked, write_journal

WEIGHTS = "0" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a file ``f`` of 100 zero bytes and a journal that changes it."""
    (tmp_path / "f").write_bytes(bytes(100))
    store = PatchStore()
    file = CheckpointFile(tmp_path / "f", "f")
    image = Image("f", file, 120, store)
    image.patch(10, b"abc", 0)
    image.patch(110, b"0123456789", None)
    write_journal(tmp_path, [image], WEIGHTS)
    file.close()
    assert (tmp_path / "f").read_bytes() == bytes(100)
    return tmp_path


def test_it_is_carried_out_and_removed(folder: Path) -> None:
    assert apply_journal(folder, WEIGHTS)
    assert (folder / "f").read_bytes() == bytes(10) + b"abc" + bytes(97) + b"0123456789"
    assert not (folder / JOURNAL).exists()
    assert not apply_journal(folder, WEIGHTS)


def test_twice_is_once(folder: Path) -> None:
    journal = (folder / JOURNAL).read_bytes()
    apply_journal(folder, WEIGHTS)
    first = (folder / "f").read_bytes()
    (folder / JOURNAL).write_bytes(journal)
    apply_journal(folder, WEIGHTS)
    assert (folder / "f").read_bytes() == first


def test_every_flipped_byte_and_every_cut_is_refused(folder: Path) -> None:
    whole = (folder / JOURNAL).read_bytes()
    for at in range(len(whole)):
        flip(folder / JOURNAL, at)
        with pytest.raises(WeightguardError):
            apply_journal(folder, WEIGHTS)
        (folder / JOURNAL).write_bytes(whole[:at])
        with pytest.raises(WeightguardError, match="damaged"):
            apply_journal(folder, WEIGHTS)
        (folder / JOURNAL).write_bytes(whole)
    assert (folder / "f").read_bytes() == bytes(100)


def test_that_of_other_weights_is_refused(folder: Path) -> None:
    with pytest.raises(WeightguardError, match="other weights"):
        apply_journal(folder, "1" * 64)
    assert (folder / "f").read_bytes() == bytes(100)


def test_a_link_out_of_the_folder_is_not_written_through(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path.parent / "outside"
    outside.write_bytes(bytes(100))
    (folder / "f").unlink()
    (folder / "f").symlink_to(outside)
    with pytest.raises(WeightguardError):
        apply_journal(folder, WEIGHTS)
    assert outside.read_bytes() == bytes(100)


def test_a_pipe_is_not_written_to(folder: Path) -> None:
    (folder / "f").unlink()
    os.mkfifo(folder / "f")
    with pytest.raises((WeightguardError, OSError)):
        apply_journal(folder, WEIGHTS)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(WeightguardError, match="another repair"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_our_own_files_are_known_by_name() -> None:
    assert is_journal(JOURNAL)
    assert is_journal(f".{JOURNAL}.abcdefgh.tmp")
    assert not is_journal("model.safetensors")
