"""kill -9 at any moment of writing a manifest leaves the old one or the new one, whole."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import Manifest, fingerprint

KILLS = 60
WRITERS = """
import os, signal, sys, time
from weightguard import fingerprint
first, second, target = sys.argv[1:]
with fingerprint(first, threads=1) as a, fingerprint(second, threads=1) as b:
    for moment in sys.stdin:
        a, b = b, a
        written, report = os.pipe()
        writer = os.fork()
        if not writer:
            a.write(target)
            os.write(report, b"once")
            while True:
                b.write(target)
                a.write(target)
        os.close(report)
        os.read(written, 4)
        os.close(written)
        time.sleep(float(moment))
        os.kill(writer, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]), flush=True)
"""
"""Starts a writer for each line of its input, lets it write once, kills it so many seconds later,
and says how it ended."""


@pytest.mark.proof
def test_killed_writers_leave_a_whole_manifest(
    tmp_path: Path, claim: Callable[[str], None]
) -> None:
    models = [
        write_safetensors(tmp_path / f"{n}.safetensors", {"w": random_tensor("BF16", (500, 64), n)})
        for n in (1, 2)
    ]
    target = tmp_path / "model.weightguard.json"
    identities = set()
    for model in models:
        with fingerprint(model) as manifest:
            manifest.write(target)
            identities.add(manifest.document.weights)
    moments = random.Random(7)
    seen = set()
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS, *map(str, models), str(target)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as writers:  # fmt: skip
        assert writers.stdin is not None
        assert writers.stdout is not None
        for _ in range(KILLS):
            print(moments.uniform(0.0005, 0.03), file=writers.stdin, flush=True)
            assert int(writers.stdout.readline()) == -signal.SIGKILL
            with Manifest.read(target) as survivor:
                seen.add(survivor.document.weights)
    assert seen == identities
    assert writers.returncode == 0
    claim(f"{KILLS} writers killed, every manifest left behind was whole")
