"""Speed of checked ternary products beside their peers and this machine's limits.

    python benchmarks/ternary.py [--rounds 9] [--threads 1 2] [--ggml FOLDER] [--shapes 640x2560 ..]

Contestants take turns in every round; the table shows medians, and medians of the paired ratios of
each round. One thread is timed by its CPU time, which other programs disturb less; two by the
clock. Cold: products go through so many copies of the weights that none is in a cache. Hot: one
copy. Limits are measured between the rounds of the same run: bytes that a stream reads from memory,
multiply-adds of bytes in registers. ``--ggml`` names the folder of libggml-cpu.so (of the package
llama-cpp-python, say), whose TQ2_0 dot products are then timed too. Needs a C++ compiler and the
development environment.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from weightguard_integrations import ternary
from weightguard_integrations.ternary.memory import packed_bytes

SHAPES = ("640x2560", "2560x2560", "6912x2560", "2560x6912", "14336x4096", "4096x14336")
TOKENS = (1, 2, 4, 8, 64, 256)
COLD_BYTES = 160 << 20
FLOOR_BYTES = 256 << 20
PEAK_ROUNDS = 2_000_000
SAMPLE_SECONDS = 0.004
SLOW_PEER_TOKENS = 8

Contestant = Callable[[int], object]
"""Runs one product with the n-th copy of the weights."""


def compiled(folder: Path) -> ctypes.CDLL:
    """Build the limits for this very processor."""
    library = folder / "floor.so"
    source = Path(__file__).with_name("ternary_floor.cpp")
    compiler = os.environ.get("CXX", "c++")
    subprocess.run(
        [compiler, "-O3", "-march=native", "-shared", "-fPIC", source, "-o", library], check=True
    )
    floor = ctypes.CDLL(str(library))
    floor.read_all.restype = floor.multiply_add.restype = ctypes.c_uint64
    floor.read_all.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    floor.multiply_add.argtypes = [ctypes.c_uint64, ctypes.c_void_p]
    return floor


class Limits:
    """GB/s of reading and G multiply-adds a second, one thread."""

    def __init__(self, floor: ctypes.CDLL):
        self._floor, self._data = floor, packed_bytes(FLOOR_BYTES)
        self._data[:] = 1
        self.read: list[float] = []
        self.peak: list[float] = []

    def measure(self) -> None:
        start = time.thread_time()
        self._floor.read_all(self._data.ctypes.data, FLOOR_BYTES)
        self.read.append(FLOOR_BYTES / (time.thread_time() - start) / 1e9)
        out = ctypes.c_int32()
        start = time.thread_time()
        done = self._floor.multiply_add(PEAK_ROUNDS, ctypes.byref(out))
        self.peak.append(done / (time.thread_time() - start) / 1e9)


class Ggml:
    """TQ2_0 through ggml's exported dot product."""

    def __init__(self, folder: Path, floor: ctypes.CDLL):
        for base in sorted(folder.glob("libggml-base.so*")):
            ctypes.CDLL(str(base), ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(next(iter(sorted(folder.glob("libggml-cpu*.so*"))))))
        library.ggml_cpu_init()
        self._dot = ctypes.cast(library.ggml_vec_dot_tq2_0_q8_K, ctypes.c_void_p)
        self._quantise = ctypes.cast(library.quantize_row_q8_K, ctypes.c_void_p)
        self._product = floor.ggml_product

    def contestant(
        self, blocks: list[np.ndarray], x: np.ndarray, columns: int, out: np.ndarray
    ) -> Contestant:
        scratch = np.zeros(columns // 256 * 292 + 4096, np.uint8)
        pointer = ctypes.c_void_p

        def run(n: int) -> None:
            rows = blocks[n % len(blocks)]
            self._product(
                self._dot, self._quantise, pointer(rows.ctypes.data),
                ctypes.c_size_t(rows.shape[1]), len(rows), columns, pointer(x.ctypes.data),
                len(x), pointer(scratch.ctypes.data), pointer(out.ctypes.data),
            )  # fmt: skip

        return run


def copies(nbytes: int) -> int:
    return max(1, -(-COLD_BYTES // nbytes))


def ours(weight: np.ndarray, count: int, x: np.ndarray, out: np.ndarray) -> dict[str, Contestant]:
    matrix = ternary.PackedTernary.from_int8(weight, 0.5)
    geometry = matrix.geometry
    check = ternary.engine.native.scale_check(matrix.scales)
    room = packed_bytes(matrix.packed.nbytes * count)
    natives = []
    for n in range(count):
        part = room[n * matrix.packed.nbytes : (n + 1) * matrix.packed.nbytes]
        part[:] = matrix.packed
        natives.append(
            ternary.engine.native.PackedMatrix(
                True, geometry.rows, geometry.columns, geometry.digits, part, matrix.scales, check
            )
        )
    x_at, out_at, fastest = x.ctypes.data, out.ctypes.data, ternary.isa()

    def product(verify: bool, isa: str) -> Contestant:
        def run(n: int) -> None:
            ternary.select_isa(isa)
            natives[n % count].multiply(x_at, 0, len(x), out_at, 0, verify, [])

        def same(n: int) -> None:
            natives[n % count].multiply(x_at, 0, len(x), out_at, 0, verify, [])

        return same if isa == fastest else run

    found = {"checked": product(True, fastest), "unchecked": product(False, fastest)}
    if fastest == "avx512":
        # the whole sample runs with it, so choosing it costs one call
        found["avx2"] = product(False, "avx2")
    return found


def peers(
    weight: np.ndarray, count: int, x: np.ndarray, ggml: Ggml | None
) -> dict[str, Contestant]:
    rows, columns = weight.shape
    found: dict[str, Contestant] = {}
    tensor = torch.from_numpy(x).bfloat16()
    sheets = [
        torch.from_numpy(weight).bfloat16() for _ in range(min(count, copies(weight.size * 2)))
    ]
    found["torch bf16"] = lambda n: torch.nn.functional.linear(tensor, sheets[n % len(sheets)])
    codes = torch.from_numpy(np.rint(x / np.abs(x).max() * 127).astype(np.int8))
    bytes_ = [torch.from_numpy(weight.copy()).T for _ in range(min(count, copies(weight.size)))]
    found["torch int8"] = lambda n: torch._int_mm(codes, bytes_[n % len(bytes_)])
    if ggml and len(x) <= SLOW_PEER_TOKENS:
        blocks = quantize(weight.astype(np.float32), GGMLQuantizationType.TQ2_0)
        sheets2 = [blocks.copy() for _ in range(min(count, copies(blocks.nbytes)))]
        found["TQ2_0"] = ggml.contestant(sheets2, x, columns, np.zeros((len(x), rows), np.float32))
    return found


def timed(run: Contestant, first: int, cold: bool) -> tuple[float, int]:
    """Return seconds a product, over as many as fill a sample, and the next copy."""
    clock = time.thread_time if ternary.num_threads() == 1 else time.perf_counter
    run(first if cold else 0)
    done, start, n = 0, clock(), first + 1
    while (elapsed := clock() - start) < SAMPLE_SECONDS or not done:
        run(n if cold else 0)
        n, done = n + 1, done + 1
    return elapsed / done, n


def race(
    contestants: dict[str, Contestant], rounds: int, cold: bool, limits: Limits
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    turn = dict.fromkeys(contestants, 0)
    fastest = ternary.available_isas()[-1]
    for number in range(rounds):
        names = list(contestants)
        for name in names if number % 2 else reversed(names):
            ternary.select_isa("avx2" if name == "avx2" else fastest)
            seconds, turn[name] = timed(contestants[name], turn[name], cold)
            times[name].append(seconds)
        ternary.select_isa(fastest)
        if number % 3 == 0:
            limits.measure()
    return times


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def line(
    name: str, weight: np.ndarray, tokens: int, times: dict[str, list[float]], limits: Limits
) -> str:
    rows, columns = weight.shape
    own, read = statistics.median(times["unchecked"]), statistics.median(limits.read)
    peak = max(statistics.median(limits.peak), 1e-9)
    packed = -(-rows // 16) * 16 * -(-columns // 16) * 4
    parts = [
        f"{name:12} M={tokens:<4}{own * 1e6:10.1f} us",
        f"{packed / own / 1e9:6.1f} GB/s {packed / own / 1e9 / read:5.2f} floor",
        f"{weight.size * tokens / own / 1e9:6.0f} GMAC/s "
        f"{weight.size * tokens / own / 1e9 / peak:5.2f} peak",
        f"checked {ratio(times['checked'], times['unchecked']):6.4f}",
    ]
    parts += [
        f"{peer} {ratio(times[peer], times['checked']):5.1f}x"
        for peer in times
        if peer not in ("checked", "unchecked")
    ]
    return " | ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--ggml", type=Path)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        floor = compiled(Path(folder))
        limits = Limits(floor)
        ggml = Ggml(asked.ggml, floor) if asked.ggml else None
        for threads in asked.threads:
            ternary.set_num_threads(threads)
            torch.set_num_threads(threads)
            print(f"\n{threads} thread{'s' * (threads > 1)}, {ternary.isa()}; "
                  "us of an unchecked product; x: time over that of a checked one")  # fmt: skip
            for shape in asked.shapes:
                rows, columns = map(int, shape.split("x"))
                weight = rng.integers(-1, 2, (rows, columns), np.int8)
                for tokens in asked.tokens:
                    x = rng.standard_normal((tokens, columns), np.float32)
                    out = np.zeros((tokens, rows), np.float32)
                    for cold in (True, False) if tokens <= SLOW_PEER_TOKENS else (True,):
                        count = copies(weight.size // 4) if cold else 1
                        contestants = ours(weight, count, x, out) | peers(
                            weight, count, x, ggml if threads == 1 else None
                        )
                        times = race(contestants, asked.rounds, cold, limits)
                        label = f"{shape} {'cold' if cold else 'hot'}"
                        print(line(label, weight, tokens, times, limits), flush=True)
        print(
            f"\nlimits, one thread, medians: read {statistics.median(limits.read):.1f} GB/s "
            f"({min(limits.read):.1f} to {max(limits.read):.1f}), multiply-add "
            f"{statistics.median(limits.peak):.0f} G/s "
            f"({min(limits.peak):.0f} to {max(limits.peak):.0f}); load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
