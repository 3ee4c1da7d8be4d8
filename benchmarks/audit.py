"""Speed and memory of an audit beside its peers, on sharded bf16 checkpoints with a warm cache.

    python benchmarks/audit.py [--gigabytes 4] [--rounds 5] [--folder DIR] [--sparse-gigabytes 50]

Every contestant runs in a process of its own, forked from this one with everything imported, so
that CPU time is the contestant's work alone. Rounds are interleaved: each round runs all of them
once. The table shows medians and the ratio to reading the mapping. Needs the development
environment (torch, model-signing).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import blake3
import numpy as np
import torch
import xxhash
from model_signing import signing, verifying
from safetensors import safe_open

import weightguard
from weightguard.scan.digest import DigestAlgorithm
from weightguard.scan.stream import scan_tensors

SHARDS = 5
ROW, ROWS = 4096, 8192
BLOCK = 1 << 20


@dataclass(frozen=True)
class Cost:
    """What one run took: CPU seconds (user and system) and wall seconds."""

    cpu: float
    wall: float


def make_checkpoint(folder: Path, gigabytes: float) -> Path:
    """Write a sharded bf16 checkpoint of normally distributed weights and its index."""
    model = folder / "model"
    model.mkdir()
    tensor_bytes = ROW * ROWS * 2
    count = max(SHARDS, int(gigabytes * 1e9 / tensor_bytes))
    generator = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    for shard in range(SHARDS):
        names = [f"layers.{n}.mlp.down_proj.weight" for n in range(shard, count, SHARDS)]
        file_name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        write_shard(model / file_name, names, tensor_bytes, generator)
        weight_map |= dict.fromkeys(names, file_name)
    index = {"metadata": {"total_size": count * tensor_bytes}, "weight_map": weight_map}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def write_shard(
    path: Path, names: list[str], tensor_bytes: int, generator: np.random.Generator | None
) -> None:
    """Write one safetensors shard; without a generator its data is a hole of the file system."""
    header = {
        name: {
            "dtype": "BF16",
            "shape": [ROWS, ROW],
            "data_offsets": [n * tensor_bytes, (n + 1) * tensor_bytes],
        }
        for n, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if generator is None:
            file.truncate(8 + len(text) + len(names) * tensor_bytes)
            return
        for _ in names:
            values = generator.standard_normal(ROWS * ROW, dtype=np.float32) * np.float32(0.02)
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def make_sparse(folder: Path, gigabytes: float) -> Path:
    """Write a checkpoint of the given size whose data occupies no disk."""
    path = folder / "sparse.safetensors"
    tensor_bytes = ROW * ROWS * 2
    names = [f"layers.{n}.weight" for n in range(int(gigabytes * 1e9 / tensor_bytes) + 1)]
    write_shard(path, names, tensor_bytes, None)
    return path


def measure(contestant: Callable[[], object]) -> Cost:
    """Run a contestant in a forked process and return its cost."""
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            contestant()
            status = 0
        finally:
            os._exit(status)
    _, status, usage = os.wait4(child, 0)
    if status != 0:
        raise RuntimeError("a contestant failed")
    wall = time.perf_counter() - start
    return Cost(usage.ru_utime + usage.ru_stime, wall)


def shards(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def read_mapping(model: Path) -> None:
    for path in shards(model):
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            words = np.frombuffer(mapping, np.uint64, count=len(mapping) // 8)
            for start in range(0, len(words), BLOCK // 8):
                words[start : start + BLOCK // 8].max()


def read_positioned(model: Path) -> None:
    buffer = mmap.mmap(-1, BLOCK)
    for path in shards(model):
        with path.open("rb") as file:
            for offset in range(0, path.stat().st_size, BLOCK):
                os.preadv(file.fileno(), [buffer], offset)


def whole_file_hash(model: Path, new: Callable[[], object]) -> None:
    buffer = bytearray(BLOCK)
    for path in shards(model):
        hasher = new()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                hasher.update(memoryview(buffer)[:count])  # type: ignore[attr-defined]


def sha256sum(model: Path) -> None:
    subprocess.run(["sha256sum", *shards(model)], check=True, stdout=subprocess.DEVNULL)


def numpy_blocks(model: Path) -> None:
    """Check blocks with NumPy: extrema, NaN and infinities of bf16 widened to binary32, XXH3."""
    for path in shards(model):
        with path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            while data := file.read(BLOCK):
                xxhash.xxh3_128_digest(data)
                wide = np.frombuffer(data, np.uint16).astype(np.uint32) << np.uint32(16)
                values = wide.view(np.float32)
                values.min(), values.max(), np.isnan(values).any(), np.isinf(values).any()
                np.square(values).sum()


def torch_audit(model: Path) -> None:
    """Check tensors the way a short script would."""
    for path in shards(model):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                tensor.min(), tensor.max(), tensor.isnan().any(), tensor.isinf().any()
                tensor.float().std()
                hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()


def scan(model: Path, digest: DigestAlgorithm | None, threads: int) -> None:
    with weightguard.open_checkpoint(model) as checkpoint:
        scan_tensors(checkpoint.tensors, lambda _: [], digest=digest, threads=threads)


def attest(model: Path, threads: int) -> None:
    weightguard.fingerprint(model, threads=threads).close()


class Signer:
    """model-signing with an elliptic-curve key made for the occasion."""

    def __init__(self, folder: Path, model: Path):
        self.model, self.signature = model, folder / "model.sig"
        self.private, self.public = folder / "key.pem", folder / "key.pub"
        run = lambda *command: subprocess.run(command, check=True, capture_output=True)  # noqa: E731
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.private)
        run("openssl", "ec", "-in", self.private, "-pubout", "-out", self.public)

    def sign(self) -> None:
        signer = signing.Config().use_elliptic_key_signer(private_key=self.private)
        signer.sign(self.model, self.signature)

    def verify(self) -> None:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=self.public)
        verifier.verify(self.model, self.signature)


def contestants(model: Path, signer: Signer) -> dict[str, Callable[[], object]]:
    cores = len(os.sched_getaffinity(0))
    return {
        "read the mapping": lambda: read_mapping(model),
        "read with preadv": lambda: read_positioned(model),
        "scan: XXH3 + residues + statistics": lambda: scan(model, None, 1),
        "scan: the same + BLAKE3": lambda: scan(model, "blake3", 1),
        f"scan: the same + BLAKE3, {cores} threads": lambda: scan(model, "blake3", cores),
        "scan: the same + SHA-256": lambda: scan(model, "sha256", 1),
        "manifest, complete": lambda: attest(model, 1),
        "audit, complete": lambda: weightguard.audit(model, threads=1),
        "blake3, whole files": lambda: whole_file_hash(model, blake3.blake3),
        "hashlib sha256, whole files": lambda: whole_file_hash(model, hashlib.sha256),
        "coreutils sha256sum": lambda: sha256sum(model),
        "model-signing sign": signer.sign,
        "model-signing verify": signer.verify,
        "numpy in blocks + XXH3": lambda: numpy_blocks(model),
        "torch, tensor by tensor": lambda: torch_audit(model),
    }


def print_table(costs: dict[str, list[Cost]], nbytes: int) -> None:
    floor = statistics.median(cost.cpu for cost in costs["read the mapping"])
    print(f"{'':44}{'CPU s':>8}{'GB/CPU s':>10}{'x mapping':>11}{'wall s':>8}")
    for name, runs in costs.items():
        cpu = statistics.median(cost.cpu for cost in runs)
        wall = statistics.median(cost.wall for cost in runs)
        print(f"{name:44}{cpu:8.3f}{nbytes / cpu / 1e9:10.2f}{cpu / floor:11.2f}{wall:8.3f}")


def peak_of_fresh_process(path: Path, command: str) -> float:
    """Return VmHWM in MB of a fresh interpreter that runs the command line on ``path``."""
    script = (
        "import sys; from weightguard_cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "line = next(l for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "print(line.split()[1], file=sys.stderr)"
    )
    arguments = [sys.executable, "-c", script, command, str(path)]
    if command == "manifest":
        arguments += ["-o", str(path.parent / "peak.weightguard.json")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return int(done.stderr.split()[-1]) / 1024


def print_memory(model: Path, sparse: Path | None) -> None:
    print("\npeak resident memory of the whole process (VmHWM), MB")
    for path in [model, *([sparse] if sparse else [])]:
        size = sum(f.stat().st_size for f in (shards(path) if path.is_dir() else [path])) / 1e9
        for command in ("audit", "manifest"):
            start = time.perf_counter()
            peak = peak_of_fresh_process(path, command)
            wall = time.perf_counter() - start
            print(f"  {command:9}{size:7.1f} GB  {peak:6.0f} MB  {wall:6.1f} s  {path.name}")


def print_startup() -> None:
    print("\nstart-up, median of 9, seconds")
    for label, code in (
        ("weightguard --help", "import sys; sys.argv=['weightguard','--help'];"
         "from weightguard_cli.main import main; main()"),
        ("import weightguard", "import weightguard"),
    ):  # fmt: skip
        runs = []
        for _ in range(9):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
            runs.append(time.perf_counter() - start)
        print(f"  {label:24}{statistics.median(runs):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sparse-gigabytes", type=float, default=50, help="0 leaves it out")
    parser.add_argument("--folder", type=Path, help="where to put the checkpoints")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = make_checkpoint(folder, options.gigabytes)
        nbytes = sum(path.stat().st_size for path in shards(model))
        running = contestants(model, Signer(folder, model))
        costs: dict[str, list[Cost]] = {label: [] for label in running}
        for contestant in running.values():
            measure(contestant)
        for _ in range(options.rounds):
            for label, contestant in running.items():
                costs[label].append(measure(contestant))
        print(f"{nbytes / 1e9:.1f} GB of bf16 in {SHARDS} shards, medians of {options.rounds}\n")
        print_table(costs, nbytes)
        sparse = options.sparse_gigabytes and make_sparse(folder, options.sparse_gigabytes)
        print_memory(model, sparse or None)
    print_startup()


if __name__ == "__main__":
    main()
