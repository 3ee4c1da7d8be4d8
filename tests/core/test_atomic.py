"""Atomic writes leave nothing behind, and take away what killed writers left."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import fingerprint
from weightguard.atomic import atomic_write

KILLED = """
import os, signal, sys
from pathlib import Path
from weightguard.atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def write(path: Path, data: bytes) -> None:
    with atomic_write(path) as file:
        file.write(data)


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert len(names(tmp_path)) == 1
    write(target, b"whole")
    assert names(tmp_path) == {"report.json"}
    assert target.read_bytes() == b"whole"


def test_files_in_use_and_files_of_others_stay(tmp_path: Path) -> None:
    target = tmp_path / "r"
    others = {
        ".r.abc.tmp", ".r.x.abcdefgh.tmp", ".rr.abcdefgh.tmp", "r.abcdefgh.tmp", ".r.abcdefgh.tmpx"
    }  # fmt: skip
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".r.linklink.tmp").symlink_to(tmp_path / "r.abcdefgh.tmp")
    os.mkfifo(tmp_path / ".r.pipepipe.tmp")
    (tmp_path / ".r.lockedbb.tmp").touch()
    (tmp_path / ".r.leftover.tmp").touch()
    with (tmp_path / ".r.lockedbb.tmp").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write(target, b"x")
    kept = {"r", ".r.linklink.tmp", ".r.pipepipe.tmp", ".r.lockedbb.tmp"}
    assert names(tmp_path) == others | kept


def test_two_writers_of_one_target_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "r"
    with atomic_write(target) as first:
        first.write(b"first")
        write(target, b"second")
    assert target.read_bytes() == b"first"
    assert names(tmp_path) == {"r"}


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError), atomic_write(tmp_path / "r") as file:
        file.write("no bytes")  # type: ignore[arg-type]
    assert names(tmp_path) == set()


def test_a_folder_that_is_not_there_is_told_by_the_target(tmp_path: Path) -> None:
    target = tmp_path / "none" / "x"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(target):
        pass
    assert caught.value.filename == str(target)


def test_a_manifest_takes_away_abandoned_sidecars_too(tmp_path: Path) -> None:
    model = write_safetensors(tmp_path / "m.safetensors", {"w": random_tensor("F32", (8, 64))})
    target = tmp_path / "m.weightguard.json"
    left = tmp_path / ".m.weightguard-0123456789abcdef.sidecar.abcdefgh.tmp"
    left.write_bytes(b"half")
    with fingerprint(model) as manifest:
        sidecar = manifest.write(target)
    assert names(tmp_path) == {model.name, target.name, sidecar.name}
