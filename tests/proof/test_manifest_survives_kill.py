"""kill -9 at any moment of writing a manifest leaves the old one or the new one, whole."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import Manifest, fingerprint

KILLS = 60
WRITER = """
import sys
from weightguard import fingerprint
first, second, target = sys.argv[1:]
with fingerprint(first, threads=1) as a, fingerprint(second, threads=1) as b:
    print("ready", flush=True)
    while True:
        a.write(target)
        b.write(target)
"""


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
    for _ in range(KILLS):
        kill_a_writer([*map(str, models), str(target)], moments.uniform(0.0005, 0.03))
        with Manifest.read(target) as survivor:
            seen.add(survivor.document.weights)
    assert seen == identities
    claim(f"{KILLS} writers killed, every manifest left behind was whole")


def kill_a_writer(arguments: list[str], after: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(timeout=after)
        writer.kill()
