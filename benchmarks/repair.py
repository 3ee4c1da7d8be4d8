"""What parity costs when a manifest is written, and how fast damage is healed.

    python benchmarks/repair.py [--gib 2] [--repeats 3] [--folder FOLDER]

Writes a checkpoint of random bf16 in FOLDER, which needs three times its size. Times are medians,
page cache warm; GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.checkpoints import write_safetensors
from weightguard import Manifest, fingerprint, verify
from weightguard.repair import Means, repair, repair_in_place

MIB = 1 << 20
TENSOR_BYTES = 128 * MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        measure(Path(folder), given.gib << 30, given.repeats)


def measure(folder: Path, nbytes: int, repeats: int) -> None:
    model = write_model(folder / "m.safetensors", nbytes)
    size = model.stat().st_size
    for parity in (False, True):
        with fingerprint(model, parity=parity) as made:  # page cache
            made.write(folder / "m.weightguard.json")
        wall, cpu = timed(lambda: attest(model, folder, parity), repeats)  # noqa: B023
        show(f"manifest{' --parity' if parity else ''}", size, wall, cpu)
    parity_file = next(folder.glob("*.parity"))
    print(f"parity sidecar: {parity_file.stat().st_size / size:.4f} of the size")
    wall, cpu = timed(lambda: verify(model, folder / "m.weightguard.json"), repeats)
    show("verify", size, wall, cpu)
    with Manifest.read(folder / "m.weightguard.json") as manifest:
        for what, damage in DAMAGES.items():
            walls = []
            for _ in range(repeats):
                damage(model)
                started = time.perf_counter()
                assert repair_in_place(model, manifest, Means()).healed
                walls.append(time.perf_counter() - started)
            show(f"repair --in-place, {what}", size, statistics.median(walls), None)
        flips(model)
        started = time.perf_counter()
        assert repair(model, manifest, folder / "new.safetensors", Means()).healed
        show("repair -o, 100,000 flips", size, time.perf_counter() - started, None)


def attest(model: Path, folder: Path, parity: bool) -> None:
    with fingerprint(model, parity=parity) as made:
        made.write(folder / "m.weightguard.json")


def write_model(path: Path, nbytes: int) -> Path:
    values = np.random.default_rng(1).standard_normal(TENSOR_BYTES // 2, dtype=np.float32)
    data = ((values * 0.05).view(np.uint32) >> 16).astype("<u2").tobytes()
    shape = (TENSOR_BYTES // 8192, 4096)
    count = nbytes // TENSOR_BYTES
    return write_safetensors(path, {f"w{n:03}": ("BF16", shape, data) for n in range(count)})


def flips(model: Path) -> None:
    size = model.stat().st_size
    rows = min(100_000, size // 8192 - 1)
    data = np.memmap(model, np.uint8, "r+", offset=size % 8192)
    data[np.arange(rows) * 8192 + 77] ^= 4
    data.flush()


def burst(model: Path) -> None:
    with model.open("r+b") as file:
        file.seek(model.stat().st_size // 2)
        file.write(os.urandom(16 * MIB))


def nothing(model: Path) -> None:
    model.touch()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "nothing damaged": nothing,
    "a flip in each of up to 100,000 rows": flips,
    "a burst of 16 MiB": burst,
}


def timed(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return statistics.median(walls), statistics.median(cpus)


def show(what: str, size: int, wall: float, cpu: float | None) -> None:
    tail = "" if cpu is None else f", {cpu:.2f} CPU-s, {size / cpu / 1e9:.2f} GB/CPU-s"
    print(f"{what}: {wall:.2f} s, {size / wall / 1e9:.2f} GB/s{tail}", flush=True)


if __name__ == "__main__":
    main()
