"""New checkpoints: whole under their name, never over what somebody else wrote meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.damaged import attest, contents, write_model
from weightguard import Manifest, WeightguardError
from weightguard.inject import inject
from weightguard.repair import repair
from weightguard.repair.folders import new_checkpoint, refuse_inside

INDEX = "model.safetensors.index.json"


def write(target: Path, data: bytes, *, single: bool) -> None:
    with new_checkpoint(target, single=single) as work:
        (work / (target.name if single else "f")).write_bytes(data)


def write_while_another_does(target: Path, *, single: bool) -> None:
    with new_checkpoint(target, single=single) as work:
        (work / (target.name if single else "f")).write_bytes(b"second")
        write(target, b"first", single=single)


@pytest.mark.parametrize("single", [True, False])
def test_the_second_of_two_writers_leaves_the_firsts_work_alone(
    tmp_path: Path, single: bool
) -> None:
    target = tmp_path / "new"
    with pytest.raises(WeightguardError, match="by somebody else meanwhile"):
        write_while_another_does(target, single=single)
    assert (target if single else target / "f").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_file_system_without_links_serves_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    write(tmp_path / "new", b"whole", single=True)
    assert (tmp_path / "new").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_an_empty_folder_becomes_a_folder_and_no_file(tmp_path: Path) -> None:
    target = tmp_path / "new"
    target.mkdir()
    with pytest.raises(WeightguardError, match="is a folder"):
        write(target, b"", single=True)
    write(target, b"whole", single=False)
    assert (target / "f").read_bytes() == b"whole"


def test_a_folder_is_not_written_into_the_folder_of_an_index(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    before = contents(model)
    for target in (model / "new", model / "sub" / "new"):
        with pytest.raises(WeightguardError, match=r"several files.*\(-o\)"):
            refuse_inside(target, model / INDEX)
        with (
            Manifest.read(attest(model, tmp_path / "m.weightguard.json")) as manifest,
            pytest.raises(WeightguardError, match="several files"),
        ):
            repair(model / INDEX, manifest, target)
        with pytest.raises(WeightguardError, match="several files"):
            inject(model / INDEX, target, [])
    assert contents(model) == before
    refuse_inside(tmp_path / "new", model / INDEX)
