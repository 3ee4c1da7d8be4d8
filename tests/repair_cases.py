"""A model, its manifests and ways to damage a copy of it, for the tests of repair."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from tests.damaged import MIB, attest, contents, flip, overwrite, write_model
from weightguard import Manifest
from weightguard.repair import Means, RepairOutcome, repair, repair_in_place

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


class Case:
    """A sound model, its manifests, and a copy to be damaged."""

    def __init__(self, folder: Path):
        self.sound = write_model(folder / "sound")
        self.plain = attest(self.sound, folder / "plain.weightguard.json")
        self.parity = attest(self.sound, folder / "parity.weightguard.json", parity=True)
        self.model = folder / "model"
        self.output = folder / "out"
        shutil.copytree(self.sound, self.model)
        self.first, self.second = self.model / FIRST, self.model / SECOND

    def repair(self, manifest: Path, **means: Any) -> RepairOutcome:
        before = contents(self.model)
        with Manifest.read(manifest) as read:
            outcome = repair(self.model, read, self.output, Means(threads=2, **means))
        assert contents(self.model) == before
        return outcome

    def in_place(self, manifest: Path, **means: Any) -> RepairOutcome:
        with Manifest.read(manifest) as read:
            return repair_in_place(self.model, read, Means(threads=2, **means))

    def assert_whole(self, folder: Path) -> None:
        assert contents(folder) == contents(self.sound)


def flip_one(case: Case) -> None:
    flip(case.first, case.first.stat().st_size - 6, 5)


def flip_many_rows(case: Case) -> None:
    for row in range(300):
        flip(case.second, 500 + row * 2000, row % 8)


def lose_a_block(case: Case) -> None:
    overwrite(case.second, 2 * MIB + 10_000, os.urandom(300_000))


def ruin_the_header(case: Case) -> None:
    overwrite(case.second, 0, b"\xff" * 40)


def change_metadata(case: Case) -> None:
    text = (case.model / INDEX).read_text().replace("total_size", "total_sise")
    (case.model / INDEX).write_text(text)


def cut(case: Case) -> None:
    os.truncate(case.second, case.second.stat().st_size - 400_000)


def append(case: Case) -> None:
    with case.second.open("ab") as file:
        file.write(b"x" * 1000)


def cut_and_flip_and_ruin(case: Case) -> None:
    cut(case)
    flip_one(case)
    ruin_the_header(case)


def lose_the_index(case: Case) -> None:
    (case.model / INDEX).unlink()


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
