"""Eviction: the cache stays within its size and age, and nobody loses what he uses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.integrations.onnxruntime.models import WIDTH, perceptron, saved
from weightguard_integrations.onnxruntime import Cache, GuardedSession
from weightguard_integrations.onnxruntime.eviction import DAY, UNUSED_DAYS, evict
from weightguard_integrations.onnxruntime.layout import DATA_NAME

X = {"x": np.ones((1, WIDTH), np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(tmp_path: Path, seed: int, limit: int = 1 << 40) -> GuardedSession:
    path = saved(perceptron(seed), tmp_path / f"model-{seed}")
    cache = Cache(tmp_path / "cache", limit)
    return GuardedSession(path, mode="sealed", cache=cache, canary_share=0)


def entries(folder: Path) -> set[str]:
    return {place.name for place in folder.iterdir() if not place.name.startswith(".")}


def name_of(session: GuardedSession) -> str:
    assert session.chain is not None
    return session.chain.key


def test_what_was_not_used_for_longest_leaves_first(tmp_path: Path, folder: Path) -> None:
    names = []
    for seed in range(3):
        names.append(name_of(load(tmp_path, seed)))
        os.utime(folder / names[-1], (time.time() - 1000 + seed,) * 2)
    name_of(load(tmp_path, 0))  # used again: the last to leave
    size = sum(file.stat().st_blocks * 512 for file in (folder / names[0]).iterdir())
    assert evict(folder, DATA_NAME, 2 * size) == [names[1]]
    assert evict(folder, DATA_NAME, 2 * size) == []
    assert evict(folder, DATA_NAME, 0) == [names[2], names[0]]
    assert entries(folder) == set()
    assert not list(folder.glob(".old-*"))


def test_what_is_in_use_stays_whatever_it_takes(tmp_path: Path, folder: Path) -> None:
    used = load(tmp_path, 0)
    clean = used.run(None, X)[0]
    other = name_of(load(tmp_path, 1, limit=0))
    assert entries(folder) == {name_of(used), other}  # that one was in use as it was made
    third = load(tmp_path, 2, limit=0)
    assert entries(folder) == {name_of(used), name_of(third)}
    used.adapter.write("first@MatMul", 1000, bytes(range(256)) * 16)
    assert used.check().findings == ()  # from the file, which is there
    used.rebuild()
    assert np.array_equal(used.run(None, X)[0], clean)
    del used, third
    assert len(evict(folder, DATA_NAME, 0)) == 2


def test_what_nobody_loaded_for_a_month_leaves(tmp_path: Path, folder: Path) -> None:
    old, young = name_of(load(tmp_path, 0)), name_of(load(tmp_path, 1))
    soon, later = ((UNUSED_DAYS + days) * DAY + time.time() for days in (-1, 1))
    os.utime(folder / young, (soon, soon))
    assert evict(folder, DATA_NAME, 1 << 40, now=soon) == []
    assert evict(folder, DATA_NAME, 1 << 40, now=later) == [old]
    assert entries(folder) == {young}


def test_a_session_of_another_process_counts(tmp_path: Path, folder: Path) -> None:
    name = name_of(load(tmp_path, 0))
    code = (
        "import sys; from weightguard_integrations.onnxruntime import GuardedSession\n"
        "s = GuardedSession(sys.argv[1], mode='sealed', cache=sys.argv[2])\n"
        "print('loaded', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "model-0" / "model.onnx"), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "loaded\n"
    assert evict(folder, DATA_NAME, 0) == []
    other.communicate("")
    assert evict(folder, DATA_NAME, 0) == [name]


def test_only_entries_are_removed(tmp_path: Path, folder: Path) -> None:
    name = name_of(load(tmp_path, 0))
    (folder / "notes").mkdir()
    (folder / "notes" / DATA_NAME).write_text("mine")
    (folder / ("0" * 64)).symlink_to(folder / "notes")
    assert evict(folder, DATA_NAME, 0) == [name]
    assert (folder / "notes" / DATA_NAME).read_text() == "mine"
