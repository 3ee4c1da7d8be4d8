"""What a gate costs beside a plain audit, on a sharded bf16 checkpoint of 1,000 tensors.

    python benchmarks/gate.py [--gigabytes 1] [--rounds 3] [--threads 1] [--folder DIR]

Every contestant runs in a forked process, rounds interleaved; medians of CPU and wall seconds, and
the bytes that the process asked the system for (rchar of /proc/self/io), page cache warm.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import weightguard
from weightguard import trust
from weightguard.policy.reading import parse_policy

TENSORS, SHARDS, COLUMNS = 1000, 10, 1024


def make_checkpoint(folder: Path, gigabytes: float) -> Path:
    """Write the checkpoint and its index; tensors are of one size, larger than 64 KiB."""
    rows = max(64, int(gigabytes * 1e9 / TENSORS / COLUMNS / 2))
    generator, weight_map = np.random.default_rng(0), {}
    folder.mkdir()
    for shard in range(SHARDS):
        names = [f"layers.{n}.weight" for n in range(shard, TENSORS, SHARDS)]
        size = rows * COLUMNS * 2
        header = {
            name: {
                "dtype": "BF16",
                "shape": [rows, COLUMNS],
                "data_offsets": [n * size, (n + 1) * size],
            }
            for n, name in enumerate(names)
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path = folder / f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _ in names:
                values = generator.standard_normal(rows * COLUMNS, dtype=np.float32) * 0.02
                file.write((values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").data)
        weight_map |= dict.fromkeys(names, path.name)
    total = TENSORS * rows * COLUMNS * 2
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def measure(contestant: Callable[[], object]) -> tuple[float, float, int]:
    """Run a contestant in a forked process; return CPU and wall seconds, and bytes asked for."""
    reading, writing = os.pipe()
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = asked_for()
            contestant()
            os.write(writing, str(asked_for() - before).encode())
            status = 0
        finally:
            os._exit(status)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    os.close(writing)
    with os.fdopen(reading) as pipe:
        nbytes = int(pipe.read() or 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime, wall, nbytes


def asked_for() -> int:
    """Return the bytes that this process asked the system to read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def contestants(model: Path, base: Path, threads: int) -> dict[str, Callable[[], object]]:
    source = model.parent / "weightguard.toml"
    manifest = 'manifest.path = "m.json"\n'

    def gate(text: str, trust_cache: bool = False) -> Callable[[], object]:
        policy = parse_policy(text, source)

        def run() -> None:
            report = weightguard.gate(
                model, policy, source=source, trust_cache=trust_cache, threads=threads
            )
            assert report.complete
            assert not report.at_least(weightguard.Severity.ERROR), report.findings[:3]

        return run

    return {
        "audit": lambda: weightguard.audit(model, threads=threads),
        "gate": gate(""),
        "audit with a manifest": lambda: weightguard.audit(
            model, manifest=model.parent / "m.json", threads=threads
        ),
        "gate with a manifest": gate(manifest),
        "gate with a base": gate(f'drift.base = "{base.name}"\ndrift.max-change = 0.1'),
        "gate with a manifest, from the trust cache": gate(manifest, trust_cache=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as work:
        os.environ["XDG_CACHE_HOME"] = f"{work}/cache"
        model = make_checkpoint(Path(work) / "model", given.gigabytes)
        base = Path(shutil.copytree(model, Path(work) / "base"))
        with weightguard.fingerprint(model) as manifest:
            manifest.write(Path(work) / "m.json")
        trust.SETTLED_NS = 0
        runs = contestants(model, base, given.threads)
        runs["gate with a manifest, from the trust cache"]()
        size = sum(path.stat().st_size for path in model.iterdir())
        costs = {name: [] for name in runs}
        for _ in range(given.rounds):
            for name, run in runs.items():
                costs[name].append(measure(run))
        print(f"{size / 1e9:.2f} GB, {TENSORS} tensors, {SHARDS} shards, {given.threads} thread(s)")
        print(f"{'':44}{'CPU s':>8}{'wall s':>8}{'x size read':>13}")
        for name, cost in costs.items():
            cpu, wall, nbytes = (statistics.median(column) for column in zip(*cost, strict=True))
            print(f"{name:44}{cpu:8.2f}{wall:8.2f}{nbytes / size:13.3f}")


if __name__ == "__main__":
    main()
