"""Speed of checked ternary products beside their peers and this machine's limits.

    python benchmarks/ternary.py [--rounds 31] [--threads 1 2] [--ggml FOLDER] [--litespark FILE]
                                 [--shapes 640x2560 ..] [--tokens 1 ..]

Contestants and limits take turns in every round, in short samples, so that they share whatever else
the machine does; the table shows medians of the ratios within a round, and times as lower
quartiles. One thread is timed by its CPU time, which other programs disturb less; two by the clock.
Cold: products go through so many copies of the weights that none is in a cache. Hot: one copy.
Limits: bytes that a stream reads from memory, multiply-adds of bytes in registers. ``--ggml`` names
the folder of libggml-cpu.so (of the package llama-cpp-python, say), whose TQ2_0 dot products are
then timed too; ``--litespark`` the library _matmul_lut_avx512*.so of the package
litespark-inference. Needs a C++ compiler and the development environment.
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
COLD_BYTES = 512 << 20
FLOOR_BYTES = 512 << 20
FLOOR_SAMPLE = 8 << 20
PEAK_ROUNDS = 200_000
SAMPLE_SECONDS = 0.002
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
    """Seconds a byte read and a multiply-add of bytes, of one thread."""

    def __init__(self, floor: ctypes.CDLL):
        self._floor, self._data, self._at = floor, packed_bytes(FLOOR_BYTES), 0
        self._data[:] = 1
        self.read: list[float] = []
        self.peak: list[float] = []

    def measure(self) -> tuple[float, float]:
        """Return both; each time other memory is read, so that it is in no cache."""
        self._at = (self._at + FLOOR_SAMPLE) % FLOOR_BYTES
        start = time.thread_time()
        self._floor.read_all(self._data.ctypes.data + self._at, FLOOR_SAMPLE)
        self.read.append((time.thread_time() - start) / FLOOR_SAMPLE)
        out = ctypes.c_int32()
        start = time.thread_time()
        done = self._floor.multiply_add(PEAK_ROUNDS, ctypes.byref(out))
        self.peak.append((time.thread_time() - start) / max(done, 1))
        return self.read[-1], self.peak[-1]


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


class Litespark:
    """The kernel of litespark-inference for one token: quantise, then multiply."""

    def __init__(self, path: Path, threads: int):
        ctypes.CDLL("libgomp.so.1").omp_set_num_threads(threads)
        library = ctypes.CDLL(str(path))
        self._quantise = library.quantize_activation_avx512
        self._quantise.restype = ctypes.c_float
        self._product = library.matmul_lut_avx512_m1

    def contestant(
        self, weight: np.ndarray, count: int, x: np.ndarray, out: np.ndarray
    ) -> Contestant:
        rows, columns = weight.shape
        fields = (weight + 1).astype(np.uint8).reshape(rows, -1, 4)
        packed = np.bitwise_or.reduce(fields << np.array([0, 2, 4, 6], np.uint8), axis=2)
        sheets = [packed.copy() for _ in range(count)]
        codes, pointer = np.zeros(columns, np.int8), ctypes.c_void_p

        def run(n: int) -> None:
            step = self._quantise(pointer(x.ctypes.data), pointer(codes.ctypes.data), columns)
            self._product(
                pointer(codes.ctypes.data), pointer(sheets[n % count].ctypes.data),
                ctypes.c_float(0.5), ctypes.c_float(step), pointer(out.ctypes.data), rows, columns,
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
    weight: np.ndarray, count: int, x: np.ndarray, ggml: Ggml | None, litespark: Litespark | None
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
    if litespark and len(x) == 1:
        out = np.zeros(rows, np.float32)
        found["litespark"] = litespark.contestant(weight, count, x, out)
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
    """Return seconds of each contestant in each round, with "read" and "multiply" of the limits."""
    times: dict[str, list[float]] = {name: [] for name in (*contestants, "read", "multiply")}
    turn = dict.fromkeys(contestants, 0)
    fastest = ternary.available_isas()[-1]
    for number in range(rounds):
        names = list(contestants)
        for name in names if number % 2 else reversed(names):
            ternary.select_isa("avx2" if name == "avx2" else fastest)
            seconds, turn[name] = timed(contestants[name], turn[name], cold)
            times[name].append(seconds)
        ternary.select_isa(fastest)
        for name, seconds in zip(("read", "multiply"), limits.measure(), strict=True):
            times[name].append(seconds)
    return times


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def line(name: str, weight: np.ndarray, tokens: int, times: dict[str, list[float]]) -> str:
    rows, columns = weight.shape
    own = statistics.quantiles(times["unchecked"], n=4)[0]
    packed, work = -(-rows // 16) * 16 * -(-columns // 16) * 4, weight.size * tokens
    parts = [
        f"{name:15} M={tokens:<4}{own * 1e6:9.1f} us",
        f"{packed / own / 1e9:5.1f} GB/s"
        f" {packed * ratio(times['read'], times['unchecked']):5.2f} floor",
        f"{work / own / 1e9:4.0f} GMAC/s"
        f" {work * ratio(times['multiply'], times['unchecked']):5.2f} peak",
        f"checked {ratio(times['checked'], times['unchecked']):6.4f}",
    ]
    parts += [
        f"{peer} {ratio(times[peer], times['checked']):5.1f}x"
        for peer in times
        if peer not in ("checked", "unchecked", "read", "multiply")
    ]
    return " | ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--ggml", type=Path)
    parser.add_argument("--litespark", type=Path)
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
            litespark = Litespark(asked.litespark, threads) if asked.litespark else None
            for shape in asked.shapes:
                rows, columns = map(int, shape.split("x"))
                weight = rng.integers(-1, 2, (rows, columns), np.int8)
                for tokens in asked.tokens:
                    x = rng.standard_normal((tokens, columns), np.float32)
                    out = np.zeros((tokens, rows), np.float32)
                    for cold in (True, False) if tokens <= SLOW_PEER_TOKENS else (True,):
                        count = copies(weight.size // 4) if cold else 1
                        contestants = ours(weight, count, x, out) | peers(
                            weight, count, x, ggml if threads == 1 else None, litespark
                        )
                        times = race(contestants, asked.rounds, cold, limits)
                        label = f"{shape} {'cold' if cold else 'hot'}"
                        print(line(label, weight, tokens, times), flush=True)
        read, peak = (
            [round(1e-9 / q, 1) for q in statistics.quantiles(seconds, n=4)[::-1]]
            for seconds in (limits.read, limits.peak)
        )
        print(
            f"\nlimits, one thread, quartiles: read {read} GB/s, multiply-add {peak} G/s; "
            f"load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
