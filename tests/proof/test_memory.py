"""Peak memory follows the block size, not the checkpoint, shown on a large sparse file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import write_safetensors

SHAPE = (16_384, 16_384)
TENSORS = 4
LIMIT_MEGABYTES = 200
MANY = 12_000
BASE_MEGABYTES = 45
LIMIT_KILOBYTES = {"audit": 2, "manifest": 5}
SCRIPT = """
import sys
from weightguard_cli.main import main
assert main(sys.argv[1:]) in (0, 1)
status = open("/proc/self/status").read()
print("peak", next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
"""


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse") / "model.safetensors"
    nbytes = SHAPE[0] * SHAPE[1] * 2
    header = {
        f"layers.{n}.weight": {
            "dtype": "BF16",
            "shape": SHAPE,
            "data_offsets": [n * nbytes, (n + 1) * nbytes],
        }
        for n in range(TENSORS)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + TENSORS * nbytes)
    return path


@pytest.mark.proof
@pytest.mark.parametrize("command", ["audit", "manifest"])
def test_peak_memory_stays_under_the_limit(
    sparse: Path, command: str, claim: Callable[[str], None]
) -> None:
    peak = peak_of(command, sparse)
    claim(f"{command} of a {sparse.stat().st_size / 1e9:.1f} GB checkpoint peaks at {peak:.0f} MB")
    assert peak < LIMIT_MEGABYTES


@pytest.mark.proof
@pytest.mark.parametrize("command", ["audit", "manifest"])
def test_a_tensor_costs_little(tmp_path: Path, command: str, claim: Callable[[str], None]) -> None:
    ones = np.ones(4, "<f4").tobytes()
    path = tmp_path / "many.safetensors"
    write_safetensors(path, {f"layers.{n}.weight": ("F32", (2, 2), ones) for n in range(MANY)})
    kilobytes = (peak_of(command, path) - BASE_MEGABYTES) * 1024 / MANY
    claim(f"{command} of {MANY:,} tensors needs {max(kilobytes, 0):.1f} kB for each")
    assert kilobytes < LIMIT_KILOBYTES[command]


def peak_of(command: str, path: Path) -> float:
    """Return the peak resident memory of a command in MiB."""
    arguments = [sys.executable, "-c", SCRIPT, command, str(path)]
    if command == "manifest":
        arguments += ["-o", str(path.parent / "m.weightguard.json")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) / 1024
