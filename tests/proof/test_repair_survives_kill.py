"""kill -9 at any step of a repair in place: the next one ends with the original."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from tests.damaged import MIB, attest, overwrite
from weightguard import Manifest, WeightguardError
from weightguard.checkpoint.unfinished import JOURNAL
from weightguard.repair import Means, repair_in_place

STEPS = ("pwrite", "fsync", "ftruncate", "posix_fallocate", "open", "close", "fchmod")
"""Calls of the operating system that a repair changes something with, or ends something."""
KILLS = 15


def damage(model: Path) -> None:
    overwrite(model, 0, b"\xff" * 30)
    overwrite(model, MIB + 10_000, bytes(500_000))
    os.truncate(model, model.stat().st_size - 40)


def repair(model: Path, manifest: Path) -> tuple[bool, bool]:
    with Manifest.read(manifest) as read:
        outcome = repair_in_place(model, read, Means(threads=1))
    return outcome.healed, outcome.resumed


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {"w": random_tensor("BF16", (3, 512, 512), 1), "n": random_tensor("F32", (64,), 2)}
    return write_safetensors(tmp_path / "model.safetensors", tensors)


def repair_until(step: int, model: Path, manifest: Path) -> bool:
    """Repair in a process of its own that kills itself in call ``step``; whether it ended."""
    child = os.fork()
    if not child:
        left, plain_write = step, os.pwrite

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*args: Any, **more: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    if call is plain_write:
                        # a write is killed between pages too, and leaves a mixture
                        call(args[0], args[1][: len(args[1]) // 2], args[2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **more)

            return counting

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        Path.replace = counted(Path.replace)  # type: ignore[method-assign]
        Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
        healed = repair(model, manifest)[0]
        os._exit(0 if healed else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


@pytest.mark.proof
def test_a_repair_killed_at_every_step_is_finished_by_the_next(
    model: Path, tmp_path: Path, claim: Callable[[str], None]
) -> None:
    manifest = attest(model, tmp_path / "m.weightguard.json", parity=True)
    sound, names = model.read_bytes(), {path.name for path in tmp_path.iterdir()}
    step, by_journal = 0, 0
    damage(model)
    while not repair_until(step, model, manifest):
        healed, resumed = repair(model, manifest)
        assert healed
        by_journal += resumed
        assert model.read_bytes() == sound
        assert {path.name for path in tmp_path.iterdir()} <= {*names, *leftovers(tmp_path)}
        step += 1
        damage(model)
    assert model.read_bytes() == sound
    assert step > 20
    assert by_journal > 3
    claim(f"a repair in place killed at {step} steps, each time finished ({by_journal} by journal)")


@pytest.mark.proof
def test_a_file_replaced_between_kill_and_resume_is_never_written(
    model: Path, tmp_path: Path, claim: Callable[[str], None]
) -> None:
    """Killed at every step, then the file is fetched again, or one of another model is."""
    manifest = attest(model, tmp_path / "m.weightguard.json", parity=True)
    sound, journal = model.read_bytes(), tmp_path / JOURNAL
    start = 8 + int.from_bytes(sound[:8], "little")
    others = (
        sound[:start] + random.Random(7).randbytes(len(sound) - start),
        # differs from the sound one in one bit of a run that is to be written
        flipped(sound, MIB + 20_000),
        # shares each run with the damaged file, and is another model elsewhere
        flipped(damaged(model), MIB // 2),
    )
    step = refused = 0
    while True:
        model.write_bytes(sound)
        damage(model)
        if repair_until(step, model, manifest):
            break
        pending = journal.exists() and journal.read_bytes()
        replace(model, sound)
        stamp = model.stat().st_mtime_ns
        assert repair(model, manifest)[0]
        assert (model.read_bytes(), model.stat().st_mtime_ns) == (sound, stamp)
        if pending:
            data = others[refused % len(others)]
            replace(model, data)
            journal.write_bytes(pending)
            with pytest.raises(WeightguardError, match="replaced"):
                repair(model, manifest)
            assert model.read_bytes() == data
            refused += 1
        journal.unlink(missing_ok=True)
        step += 1
    assert refused > 3
    claim(
        f"{refused} journals of killed repairs met a sound file fetched since, and one of another "
        "model, and wrote to neither"
    )


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def damaged(model: Path) -> bytes:
    """Return the bytes of the model as they are once damaged; the file is left as it is."""
    sound = model.read_bytes()
    damage(model)
    data = model.read_bytes()
    model.write_bytes(sound)
    return data


def replace(path: Path, data: bytes) -> None:
    """Put another file in its place, as a download does."""
    fresh = path.with_name("fresh")
    fresh.write_bytes(data)
    fresh.replace(path)


def leftovers(folder: Path) -> set[str]:
    """Return temporary journals of writers that were killed when nothing had been changed yet."""
    return {path.name for path in folder.glob("..weightguard-repair.journal.*.tmp")}


@pytest.mark.proof
def test_a_repair_killed_at_any_moment_is_finished_by_the_next(
    model: Path, tmp_path: Path, claim: Callable[[str], None]
) -> None:
    manifest = attest(model, tmp_path / "m.weightguard.json", parity=True)
    sound = model.read_bytes()
    moments = random.Random(3)
    for _ in range(KILLS):
        damage(model)
        child = os.fork()
        if not child:
            try:
                os._exit(0 if repair(model, manifest)[0] else 1)
            finally:
                os._exit(2)
        time.sleep(moments.uniform(0.001, 0.06))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (0, -signal.SIGKILL)
        assert repair(model, manifest)[0]
        assert model.read_bytes() == sound
    claim(f"{KILLS} repairs in place killed at random moments, each finished by the next")
