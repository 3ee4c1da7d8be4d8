"""Opening files of a checkpoint: regular files only, inside the folder, no descriptor lost."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from weightguard.checkpoint.files import CheckpointFile, FileRange, Folder
from weightguard.errors import CheckpointError, WeightguardError


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def rule_of(folder: Folder, name: str) -> str:
    before = descriptors()
    with pytest.raises(CheckpointError) as caught:
        folder.open(name)
    assert descriptors() == before
    assert folder.opened == ()
    assert caught.value.finding.message.isprintable()
    assert len(caught.value.finding.message) < 500
    return caught.value.finding.rule


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/../../x", "/etc/passwd", "a\\b", "a\0b", "x" * 300 + "/../../y"],
)
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    assert rule_of(Folder(tmp_path), name) == "WG110"


@pytest.mark.parametrize("name", ["\x1b[31m", "a\nb", "\u202ex", "\udc80"])
def test_a_name_that_could_forge_output_is_a_name(tmp_path: Path, name: str) -> None:
    assert rule_of(Folder(tmp_path), name) == "WG122"
    (tmp_path / name).write_bytes(b"x")
    folder = Folder(tmp_path)
    assert folder.open(name).size == 1
    folder.close()


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("x" * 300, "x" * 5000, "\ud800"):
        assert rule_of(Folder(tmp_path), name) == "WG122"
    assert rule_of(Folder(tmp_path), "missing") == "WG122"
    (tmp_path / "file").touch()
    assert rule_of(Folder(tmp_path), "file/inside") == "WG122"


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("fifo")
    folder = Folder(tmp_path)
    assert rule_of(folder, "fifo") == "WG111"
    assert rule_of(folder, "folder") == "WG111"
    assert rule_of(folder, "link") == "WG111"
    with pytest.raises(CheckpointError) as caught:
        folder.adopt(Path("/dev/zero"))
    assert caught.value.finding.rule == "WG111"


def test_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "real").write_bytes(b"inside")
    (tmp_path / "rootless").write_bytes(b"outside")
    (root / "sub" / "in").symlink_to("../real")
    (root / "out").symlink_to("../rootless")
    (root / "loop").symlink_to("loop")
    (root / "way").symlink_to(tmp_path)
    folder = Folder(root)
    assert folder.open("sub/in").read(0, 6, limit=6) == b"inside"
    folder.close()
    folder = Folder(root)
    assert rule_of(folder, "out") == "WG110"
    assert rule_of(folder, "way/rootless") == "WG110"
    assert rule_of(folder, "loop") == "WG122"
    assert folder.adopt(root / "out").read(0, 7, limit=7) == b"outside"
    folder.close()


def test_a_root_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "alias").symlink_to("real")
    folder = Folder(tmp_path / "alias")
    assert folder.open("file").size == 0
    folder.close()


def test_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model-secret").mkdir()
    (tmp_path / "model-secret" / "f").touch()
    (tmp_path / "model" / "f").symlink_to("../model-secret/f")
    assert rule_of(Folder(tmp_path / "model"), "f") == "WG110"


def test_reads_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(10)))
    file = CheckpointFile(tmp_path / "f", "f")
    assert file.read(3, 4, limit=4) == b"\x03\x04\x05\x06"
    for offset, length, rule in ((0, 5, "WG116"), (8, 4, "WG102"), (-1, 2, "WG102")):
        with pytest.raises(CheckpointError) as caught:
            file.read(offset, length, limit=4)
        assert caught.value.finding.rule == rule
    buffer = bytearray(4)
    FileRange(file, 2).read_into(1, memoryview(buffer))
    assert buffer == b"\x03\x04\x05\x06"
    with pytest.raises(CheckpointError, match="3 bytes early"):
        FileRange(file, 2).read_into(7, memoryview(buffer))
    file.close()
    file.close()
    with pytest.raises(CheckpointError):
        file.read(0, 1, limit=1)


def open_many(folder: Folder) -> None:
    for _ in range(64):
        folder.open("f")


def test_running_out_of_descriptors_says_how_to_raise_the_limit(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    folder = Folder(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 8, hard))
    try:
        with pytest.raises(WeightguardError, match="ulimit -n") as caught:
            open_many(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        folder.close()
    assert not isinstance(caught.value, CheckpointError)


def test_a_closed_folder_holds_nothing(tmp_path: Path) -> None:
    before = descriptors()
    (tmp_path / "f").touch()
    folder = Folder(tmp_path)
    for _ in range(5):
        folder.open("f")
    assert descriptors() == before + 5
    folder.close()
    assert descriptors() == before


def test_a_file_replaced_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"resolved")
    (tmp_path / "other").write_bytes(b"put in its place")
    really_open = os.open

    def swap_then_open(target: Path, flags: int) -> int:
        (tmp_path / "other").replace(tmp_path / "f")
        return really_open(target, flags)

    monkeypatch.setattr(os, "open", swap_then_open)
    assert rule_of(Folder(tmp_path), "f") == "WG111"
