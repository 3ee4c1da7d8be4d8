"""The cache of sealed models: made once, private, and made again when it is not what it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tests.integrations.onnxruntime.models import WIDTH, everything, perceptron, saved
from weightguard import WeightguardError
from weightguard_integrations.onnxruntime import GuardedSession, sealing
from weightguard_integrations.onnxruntime.cache import CANARY_NAME, ENTRY_NAME, GRAPH_NAME
from weightguard_integrations.onnxruntime.layout import DATA_NAME

X = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(perceptron(), tmp_path / "model")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(path: Path, cache: Path, **more: object) -> GuardedSession:
    quiet = {"canary_share": 0, "scrub": None}
    return GuardedSession(path, mode="sealed", cache=cache, **{**quiet, **more})  # type: ignore[arg-type]


def entries(cache: Path) -> list[Path]:
    return [place for place in cache.iterdir() if not place.name.startswith(".")]


def left_over(cache: Path) -> list[Path]:
    return [place for place in cache.iterdir() if place.is_dir() and place.name.startswith(".")]


def test_it_is_made_once_and_private(path: Path, cache: Path) -> None:
    load(path, cache)
    (place,) = entries(cache)
    assert not left_over(cache)
    before = {file.name: file.stat().st_mtime_ns for file in place.iterdir()}
    assert set(before) == {DATA_NAME, ENTRY_NAME, GRAPH_NAME, CANARY_NAME}
    assert {place.stat().st_mode & 0o777, cache.stat().st_mode & 0o777} == {0o700}
    assert all(file.stat().st_mode & 0o077 == 0 for file in place.iterdir())
    session = load(path, cache)
    assert entries(cache) == [place]
    assert {file.name: file.stat().st_mtime_ns for file in place.iterdir()} == before
    assert np.array_equal(session.run(None, X)[0], ort.InferenceSession(path).run(None, X)[0])


def test_models_of_other_names_share_an_entry(path: Path, cache: Path) -> None:
    load(path, cache)
    load(path.rename(path.with_name("renamed.onnx")), cache)
    assert len(entries(cache)) == 1


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as target:
        target.seek(offset)
        target.write(data)


def edit_entry(place: Path, change: Callable[[dict], object]) -> None:
    record = json.loads((place / ENTRY_NAME).read_bytes())
    change(record)
    (place / ENTRY_NAME).write_text(json.dumps(record))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights": lambda p: overwrite(p / DATA_NAME, _offset(p), b"\xff" * 8),
    "weights cut": lambda p: os.truncate(p / DATA_NAME, 70_000),
    "no weights": lambda p: (p / DATA_NAME).unlink(),
    "weights are a link": lambda p: _linked(p / DATA_NAME),
    "weights others can write": lambda p: (p / DATA_NAME).chmod(0o666),
    "graph": lambda p: overwrite(p / GRAPH_NAME, 40, b"\x00"),
    "graph cut": lambda p: os.truncate(p / GRAPH_NAME, 100),
    "canary": lambda p: overwrite(p / CANARY_NAME, 200, b"\x07"),
    "record": lambda p: overwrite(p / ENTRY_NAME, 5, b"\x00"),
    "record empty": lambda p: (p / ENTRY_NAME).write_bytes(b""),
    "record of another key": lambda p: edit_entry(p, lambda r: r.update(key="0" * 64)),
    "record of another model": lambda p: edit_entry(p, lambda r: r.update(model="0" * 64)),
    "record of other weights": lambda p: edit_entry(p, lambda r: r.update(weights="0" * 64)),
    "record of another runtime": lambda p: edit_entry(p, lambda r: r.update(runtime="1.0")),
    "record of another processor": lambda p: edit_entry(p, lambda r: r.update(processor="vax")),
    "record of other outputs": lambda p: edit_entry(p, lambda r: r.update(outputs=["0", "0"])),
    "record with a wild size": lambda p: edit_entry(
        p, lambda r: r["extents"][0].update(nbytes=1 << 60)
    ),
    "record with a wild dtype": lambda p: edit_entry(
        p, lambda r: r["extents"][0].update(dtype="F99")
    ),
    "record with a negative shape": lambda p: edit_entry(
        p, lambda r: r["extents"][0].update(shape=[-1, -r["extents"][0]["nbytes"]], dtype="U8")
    ),
}


def _offset(place: Path) -> int:
    record = json.loads((place / ENTRY_NAME).read_bytes())
    offset: int = next(e["offset"] for e in record["extents"] if e["packed"])
    return offset + 4096


def _linked(file: Path) -> None:
    file.rename(file.parent / "elsewhere")
    file.symlink_to(file.parent / "elsewhere")


@pytest.mark.parametrize("case", DAMAGE)
def test_a_tampered_entry_is_made_again(path: Path, cache: Path, case: str) -> None:
    expected = load(path, cache).run(None, X)[0]
    (place,) = entries(cache)
    before = (place / DATA_NAME).read_bytes()
    DAMAGE[case](place)
    session = load(path, cache)
    assert np.array_equal(session.run(None, X)[0], expected)
    assert session.check().findings == ()
    assert entries(cache) == [place]
    assert not left_over(cache)
    assert (place / DATA_NAME).read_bytes() == before
    assert not (place / DATA_NAME).is_symlink()


def test_other_processors_versions_and_options_have_entries_of_their_own(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(path, cache)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    load(path, cache, sess_options=options)
    assert len(entries(cache)) == 2
    slow = ort.SessionOptions()
    slow.add_session_config_entry("session.set_denormal_as_zero", "1")
    load(path, cache, sess_options=slow)
    load(path, cache, variant="custom operators 3")
    load(path, cache, canary=X)
    assert len(entries(cache)) == 5
    monkeypatch.setattr(sealing, "processor", lambda: "x86_64 of long ago")
    load(path, cache)
    monkeypatch.setattr(ort, "__version__", "0.0")
    load(path, cache)
    assert len(entries(cache)) == 7


def test_an_entry_of_another_processor_under_our_key_is_not_used(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sealing, "processor", lambda: "x86_64 of long ago")
        load(path, cache)
    (foreign,) = entries(cache)
    load(path, cache)
    (own,) = set(entries(cache)) - {foreign}
    own.rename(cache / "gone")
    foreign.rename(own)
    load(path, cache)
    record = json.loads((own / ENTRY_NAME).read_bytes())
    assert record["processor"] != "x86_64 of long ago"


def test_processes_that_start_together(path: Path, cache: Path) -> None:
    code = (
        "import sys, numpy as np; from weightguard_integrations.onnxruntime import GuardedSession\n"
        "s = GuardedSession(sys.argv[1], mode='sealed', cache=sys.argv[2])\n"
        "assert s.check().findings == ()\n"
        f"print(s.run(None, {{'x': np.ones((1, {WIDTH}), np.float32)}})[0].tobytes().hex())"
    )
    command = [sys.executable, "-c", code, str(path), str(cache)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * 3, results
    assert len({output for output, _ in results}) == 1
    assert len(entries(cache)) == 1
    assert not left_over(cache)


def test_what_killed_builders_left_is_removed(path: Path, cache: Path) -> None:
    cache.mkdir(mode=0o700)
    old, young = cache / ".new-old", cache / ".new-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "optimised.data").write_bytes(b"x")
    os.utime(old, (time.time() - 200_000,) * 2)
    load(path, cache)
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_is_not_private_is_refused(path: Path, cache: Path, tmp_path: Path) -> None:
    cache.mkdir()
    cache.chmod(0o775)
    with pytest.raises(WeightguardError, match=r"chmod go-w.*Give cache= another one"):
        load(path, cache)
    cache.chmod(0o755)
    load(path, cache)
    (tmp_path / "link").symlink_to(cache)
    with pytest.raises(WeightguardError, match="it is no folder itself"):
        load(path, tmp_path / "link")


def test_a_folder_that_cannot_be_made(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "cache", Path("/proc/weightguard")):
        with pytest.raises(WeightguardError, match="Give cache="):
            load(path, folder)


def test_a_full_disk(path: Path, cache: Path) -> None:
    """A limit on the size of files stands for the disk: writing fails halfway."""
    code = (
        "import resource, signal, sys\n"
        "from weightguard import WeightguardError\n"
        "from weightguard_integrations.onnxruntime import GuardedSession\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)\n"
        "try:\n"
        "    GuardedSession(sys.argv[1], mode='sealed', cache=sys.argv[2])\n"
        "except WeightguardError as error:\n"
        "    print(error)\n"
    )
    for limit in (300_000, 150_000, 20_000):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), str(cache), str(limit)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "ive cache=" in done.stdout or "free memory" in done.stdout, done.stdout
        assert entries(cache) == []
        assert left_over(cache) == []


def test_a_disk_that_is_too_small(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbytes = path.stat().st_size
    usage = shutil.disk_usage(path)._replace(free=2 * nbytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(WeightguardError) as caught:
        load(path, cache)
    assert f"may take {3 * nbytes:,} bytes, and {usage.free:,} are free" in str(caught.value)
    assert entries(cache) == left_over(cache) == []


def test_a_model_that_cannot_be_sealed_is_not_blamed_on_the_disk(path: Path, cache: Path) -> None:
    strange = onnx.load(path)
    strange.graph.node[0].op_type = "Nope"
    onnx.save(strange, path)
    with pytest.raises(WeightguardError, match="Nope") as caught:
        load(path, cache)
    assert "cache=" not in str(caught.value)


def test_nested_weights_are_copied_for_each_session(tmp_path: Path, cache: Path) -> None:
    """onnxruntime refuses files with several names where graphs are nested."""
    path = saved(everything(), tmp_path / "nested")
    one, other = load(path, cache), load(path, cache)
    feed = {"ids": np.arange(5), "choice": np.array(False)}
    assert np.array_equal(one.run(None, feed)[0], other.run(None, feed)[0])
    assert one.chain is not None
    assert one.chain.nested
    assert not left_over(cache)
