"""What the guard costs: scrubbing at 500 MB/s, a step budget, sealing, and the baseline's memory.

    python benchmarks/guard_core.py [--megabytes 1024] [--seconds 10]

Guards plain arrays through the in-memory adapter of the conformance suite, so that no model's
arithmetic is measured along. CPU time is the process's own, over the wall time of each run; an
idle run of the same length shows the noise floor. Runs alternate; medians are shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.conformance.arrays import ArrayAdapter, ArrayRuntime
from weightguard.guard import Guard, Pace, Settings

RATE = 500_000_000
STEP_BYTES = 8 << 20
ROUNDS = 5


def arrays(megabytes: int) -> dict[str, np.ndarray]:
    """Matrices of 4096 bf16 columns, and as many small vectors, as language models have."""
    generator = np.random.default_rng(0)
    rows = 2048
    count = max(1, (megabytes << 20) // (rows * 4096 * 2))
    bits = generator.integers(0, 1 << 16, (rows, 4096), dtype=np.uint16)
    matrices = {f"layers.{n}.weight": bits ^ np.uint16(n) for n in range(count)}
    return matrices | {f"layers.{n}.norm": np.ones(4096, np.float32) for n in range(count)}


def share_of_a_core(run: Callable[[], object]) -> float:
    """Return CPU seconds over wall seconds while ``run`` runs."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


def scrubbing(guard: Guard, seconds: float) -> None:
    """Let the background thread of a guard work for a while."""
    with guard:
        time.sleep(seconds)


def report_rate(make: Callable[[], Guard], seconds: float) -> None:
    """Print the share of a core that a background pass takes, beside an idle process."""
    idle, busy, rates = [], [], []
    for _ in range(ROUNDS):
        idle.append(share_of_a_core(lambda: time.sleep(seconds)))
        guard = make()
        guard.scrub(64 << 20)  # imports and caches are not the scrubber's
        before = guard.metrics.value("weightguard_scrub_bytes_total")  # type: ignore[attr-defined]
        busy.append(share_of_a_core(lambda: scrubbing(guard, seconds)))  # noqa: B023
        after = guard.metrics.value("weightguard_scrub_bytes_total")  # type: ignore[attr-defined]
        rates.append((after - before) / seconds)
    print(f"idle process               {statistics.median(idle):8.2%} of a core")
    print(f"background scrub           {statistics.median(busy):8.2%} of a core")
    print(f"  at                       {statistics.median(rates) / 1e6:8.0f} MB/s")


def report_step(guard: Guard) -> None:
    """Print what the step budget adds to one forward pass."""
    times = []
    for _ in range(200):
        start = time.perf_counter()
        guard.scrub(STEP_BYTES)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    print(
        f"step of 8 MiB              {1e3 * median:8.3f} ms ({STEP_BYTES / median / 1e9:.1f} GB/s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    adapter = ArrayAdapter(ArrayRuntime(arrays(options.megabytes)))

    def make() -> Guard:
        return Guard(adapter, settings=Settings(on_incident=(), pace=Pace(RATE)))

    start = time.process_time()
    guard = make()
    sealing = time.process_time() - start
    nbytes, baseline = guard.status().pass_bytes, guard.status().baseline_bytes
    print(f"live bytes                 {nbytes / 1e6:8.0f} MB")
    print(f"sealing, no manifest       {nbytes / sealing / 1e9:8.2f} GB per CPU-second")
    print(f"baseline in memory         {baseline / nbytes:8.3%} of the live bytes")
    report_step(guard)
    report_rate(make, options.seconds)


if __name__ == "__main__":
    main()
