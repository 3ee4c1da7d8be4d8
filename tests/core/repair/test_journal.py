"""The journal's format: whole or refused, whatever byte of it is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.damaged import flip
from weightguard import WeightguardError
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.unfinished import JOURNAL, MAGIC
from weightguard.repair import journal as module
from weightguard.repair.image import Difference, Image, PatchStore
from weightguard.repair.journal import (
    locked,
    opened_journal,
    remove_journal,
    rest_of,
    tail_of,
    write_journal,
)
from weightguard.scan.digest import new_hasher

WEIGHTS = "0" * 64


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    """Yield ``f`` of 100 zero bytes, three to be changed and 20 appended, of which 10 are zero."""
    (tmp_path / "f").write_bytes(bytes(100))
    file = CheckpointFile(tmp_path / "f", "f")
    image = Image("f", file, 120, PatchStore())
    image.patch(8, b"\0\0abc\0\0", 0)
    image.patch(110, b"0123456789", None)
    yield image
    file.close()


@pytest.fixture
def folder(tmp_path: Path, image: Image) -> Path:
    write_journal(tmp_path, [image], WEIGHTS)
    assert (tmp_path / "f").read_bytes() == bytes(100)
    return tmp_path


def test_it_holds_old_and_new_bytes_of_what_differs(folder: Path, image: Image) -> None:
    with opened_journal(folder) as journal:
        assert journal is not None
        assert journal.weights == WEIGHTS
        (change,) = journal.changes
        assert (change.name, change.old_size, change.size) == ("f", 100, 120)
        assert [*journal.runs(0)] == [
            Difference(8, bytes(7), b"\0\0abc\0\0"),
            Difference(110, bytes(10), b"0123456789"),
        ]
        assert change.rest == rest_of(image.stored, change.runs, 120)
        assert change.tail == tail_of(image.stored, 120)


def test_runs_of_overlapping_patches_do_not_overlap(tmp_path: Path) -> None:
    image = Image("f", None, 20, PatchStore())
    image.patch(0, b"a" * 10, 0)
    image.patch(5, b"b" * 10, 1)
    write_journal(tmp_path, [image], WEIGHTS)
    with opened_journal(tmp_path) as journal:
        assert journal is not None
        assert journal.changes[0].old_size is None
        assert b"".join(run.new for run in journal.runs(0)) == b"a" * 5 + b"b" * 10


def test_the_rest_is_what_lies_in_no_run_before_the_size(image: Image) -> None:
    store = image.stored
    assert rest_of(store, [(10, 3)], 90) == new_hasher_of(bytes(87))
    assert rest_of(store, [(0, 50), (50, 40)], 90) == new_hasher_of(b"")
    assert tail_of(store, 90) == new_hasher_of(bytes(10))
    assert tail_of(store, 120) == new_hasher_of(b"")


def new_hasher_of(data: bytes) -> str:
    hasher = new_hasher("blake3")
    hasher.update(data)
    return hasher.hexdigest()


def test_every_flipped_byte_and_every_cut_is_refused(folder: Path) -> None:
    whole = (folder / JOURNAL).read_bytes()
    for at in range(len(whole)):
        flip(folder / JOURNAL, at)
        with pytest.raises(WeightguardError, match="damaged"), opened_journal(folder):
            pass
        (folder / JOURNAL).write_bytes(whole[:at])
        with pytest.raises(WeightguardError, match="damaged"), opened_journal(folder):
            pass
        (folder / JOURNAL).write_bytes(whole)


@pytest.mark.parametrize(
    "runs", [[(0, 5), (3, 5)], [(8, 2), (0, 1)], [(119, 2)], [(0, (1 << 20) + 1)]]
)
def test_runs_that_no_repair_writes_are_refused(folder: Path, runs: list[tuple[int, int]]) -> None:
    """A journal that somebody made up: whole by its digest."""
    change = {"name": "f", "old_size": 100, "size": 120, "rest": "0" * 64, "tail": "0" * 64}
    document = {
        "schema": "weightguard-journal-v2", "weights": WEIGHTS,
        "files": [{**change, "runs": runs}],
    }  # fmt: skip
    text = msgspec.json.encode(document)
    body = MAGIC + len(text).to_bytes(8, "little") + text + bytes(2 * sum(n for _, n in runs))
    (folder / JOURNAL).write_bytes(body + bytes.fromhex(new_hasher_of(body)))
    with pytest.raises(WeightguardError, match="cannot change"), opened_journal(folder):
        pass


def test_that_of_another_version_is_refused_with_what_to_do(folder: Path) -> None:
    data = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(data.replace(b"journal-v2\n", b"journal-v1\n", 1))
    with pytest.raises(WeightguardError, match=r"another version.*Delete it"):  # noqa: SIM117
        with opened_journal(folder):
            pass


def test_too_many_places_for_a_journal_are_refused_before_one_is_there(
    tmp_path: Path, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", 100)
    with pytest.raises(WeightguardError, match="-o"):
        write_journal(tmp_path, [image], WEIGHTS)
    assert {path.name for path in tmp_path.iterdir()} == {"f"}


def test_none_is_none_and_one_can_be_removed(folder: Path) -> None:
    remove_journal(folder)
    with opened_journal(folder) as journal:
        assert journal is None


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(WeightguardError, match="another repair"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass
