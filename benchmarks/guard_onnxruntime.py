"""What guarding an ONNX Runtime session costs, what it finds, and that it says nothing else.

    python benchmarks/guard_onnxruntime.py [--quick] [--model NAME] [--part costs|flips|alarms]

costs   Runs of guarded and plain sessions alternate, one thread each; a ratio is that of the CPU
        time of all threads of the process over one pair, and of pairs the median is shown. The
        noise floor is the same ratio for two plain sessions: what differs by less is not measured.
flips   2,000 bits flipped in packed weights, to be found, located and repaired; then what the
        canary alone finds of flips in live weights, and in what the runtime keeps out of reach.
alarms  2,500 requests of varied shapes in all modes, on one and two threads, two at a time, by
        every way to run: everything that is said of them is a false alarm.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.integrations.onnxruntime.flips import flip_and_repair, packed
from tests.integrations.onnxruntime.real_onnx import REAL
from tests.integrations.onnxruntime.varied import MODES, serve
from weightguard import Manifest, fingerprint
from weightguard.guard import LiveTensor, Pace, Settings
from weightguard_integrations.onnxruntime import GuardedSession
from weightguard_integrations.onnxruntime.canary import Feed, recorded
from weightguard_integrations.onnxruntime.graphs import initializers, raw_bytes
from weightguard_integrations.onnxruntime.session import SCRUB
from weightguard_integrations.onnxruntime.source import RUNTIME_ERRORS

STEP_BYTES = 256 << 10
MEMORY_BYTES = 12 << 30
FLIPS_OUT_OF_REACH = 20
"""Few: some make shapes that take minutes to compute with."""
QUIET = Settings(on_incident=())
PARTS = ("costs", "flips", "alarms")
FULL = (51, 150, 2000, 2500)
"""Pairs of runs; flips for the canary alone; flips to be repaired; runs without damage."""
BITS = {"bits 31-8 of a word": (8, 32), "bits 7-0 of a word": (0, 8)}


def options(*, packing: bool = True) -> ort.SessionOptions:
    made = ort.SessionOptions()
    made.intra_op_num_threads = 1
    made.log_severity_level = 3
    if not packing:
        made.add_session_config_entry("session.disable_prepacking", "1")
    return made


def paired(a: Callable[[], object], b: Callable[[], object], pairs: int) -> tuple[float, float]:
    """Return the median ratio of a's CPU time to b's, and half the spread of its middle half."""
    for function in (a, b):
        function()
    count = max(1, round(0.02 / max(cpu(b, 3) / 3, 1e-6)))
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            second, first = cpu(b, count), cpu(a, count)
        else:
            first, second = cpu(a, count), cpu(b, count)
        ratios.append(first / second)
    quarters = statistics.quantiles(ratios, n=4)
    return statistics.median(ratios), (quarters[2] - quarters[0]) / 2


def cpu(function: Callable[[], object], count: int) -> float:
    began = time.process_time()
    for _ in range(count):
        function()
    return time.process_time() - began


def seconds(function: Callable[[], object], times: int = 3) -> float:
    """Return the least wall time of several calls."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        held = function()
        best = min(best, time.perf_counter() - began)
        if isinstance(held, GuardedSession):
            held.close()
    return best


def request(session: GuardedSession) -> Feed:
    watch = session._loaded.watch
    return watch._feeds[0]


def costs(path: Path, cache: str, manifest: Manifest, pairs: int) -> None:
    plain, twin = (
        ort.InferenceSession(path, options(), providers=["CPUExecutionProvider"]) for _ in "12"
    )

    def guarded(**more: object) -> GuardedSession:
        settings = {"mode": "sealed", "cache": cache, "manifest": manifest, "settings": QUIET}
        quiet = {"sess_options": options(), "scrub": None, **settings}
        return GuardedSession(path, **{**quiet, **more})  # type: ignore[arg-type]

    bare = guarded(canary_share=0)
    feed = request(bare)
    each = cpu(lambda: plain.run(None, feed), 20) / 20
    print(f"    one run of the plain session: {1e3 * each:.2f} ms")
    stepping = Settings(on_incident=(), step_bytes=STEP_BYTES)
    cases = {
        "plain again (noise floor)": twin,
        "sealed, no checks": bare,
        "sealed, canary at 1 %": guarded(),
        f"sealed, canary, {STEP_BYTES >> 10} KiB a run": guarded(settings=stepping),
        "in place, packing on": guarded(mode="inplace", canary_share=0),
        "in place, packing off": guarded(
            mode="inplace", canary_share=0, sess_options=options(packing=False)
        ),
    }
    for name, session in cases.items():
        ratio, spread = paired(
            lambda s=session: s.run(None, feed), lambda: plain.run(None, feed), pairs
        )
        print(f"    {name:32s} {ratio:6.3f} +- {spread:.3f} of the plain session's CPU time")
    with guarded(scrub=SCRUB) as session:  # its thread would run beside the other cases, too
        ratio, spread = paired(
            lambda: session.run(None, feed), lambda: plain.run(None, feed), pairs
        )
        print(f"    {f'sealed, {SCRUB} in the background':32s} {ratio:6.3f} +- {spread:.3f}")
        idle = cpu(lambda: time.sleep(5), 1) / 5
        print(f"    the scrubbing thread alone: {100 * idle:.2f} % of one core")
    load_times(path, cache, manifest)
    nbytes = bare.coverage().guard.covered
    spent = min(cpu(lambda: bare.guard.scrub(nbytes), 1) for _ in range(5))
    rate = nbytes / spent / 1e9
    print(f"    a pass over {nbytes / 1e6:.1f} MB: {1e3 * spent:.1f} ms, {rate:.1f} GB/s")


def load_times(path: Path, cache: str, manifest: Manifest) -> None:
    plain = seconds(lambda: ort.InferenceSession(path, options()))

    def sealed_in(folder: str) -> GuardedSession:
        return GuardedSession(
            path,
            options(),
            mode="sealed",
            cache=folder,
            manifest=manifest,
            settings=QUIET,
            scrub=None,
        )

    def first() -> GuardedSession:
        with tempfile.TemporaryDirectory() as fresh:
            return sealed_in(fresh)

    sealed = seconds(lambda: sealed_in(cache))
    print(
        f"    load: plain {plain:.3f} s; sealed and verified {sealed:.3f} s; "
        f"the first time, with sealing, {seconds(first, 1):.3f} s"
    )


def repairs(path: Path, cache: str, manifest: Manifest, flips: int) -> None:
    settings = Settings(on_incident=("repair",))
    with GuardedSession(
        path,
        mode="sealed",
        cache=cache,
        manifest=manifest,
        canary_share=0,
        settings=settings,
        scrub=None,
    ) as session:
        found = flip_and_repair(session, flips, seed=7)
        print(f"    packed weights: {found} of {flips} flips found, located and repaired")


def canary_alone(path: Path, cache: str, flips: int) -> None:
    """Flip bits of live weights and see whether the canary answers differently."""
    session = GuardedSession(
        path, options(), mode="sealed", cache=cache, canary_share=0, settings=QUIET, scrub=None
    )
    regions = session.adapter.memory.regions.values()
    forms = {
        "packed": packed(session),
        "other": [r.tensor for r in regions if r.form == "plain" and r.tensor.dtype.name == "F32"],
    }
    for form, tensors in forms.items():
        for name, bits in BITS.items():
            seen = sum(seen_by_canary(session, tensors, bits, seed) for seed in range(flips))
            print(f"    canary alone, {form} weights, {name}: {seen} of {flips} flips found")


def seen_by_canary(
    session: GuardedSession, tensors: list[LiveTensor], bits: tuple[int, int], seed: int
) -> bool:
    generator, watch = np.random.default_rng(seed), session._loaded.watch
    weights = np.array([tensor.nbytes for tensor in tensors], float)
    tensor = tensors[generator.choice(len(tensors), p=weights / weights.sum())]
    bit = int(generator.integers(*bits))
    at = 4 * int(generator.integers(tensor.nbytes // 4)) + bit // 8
    old = bytes(session.adapter.read(tensor.name, at, at + 1))
    session.adapter.write(tensor.name, at, bytes([old[0] ^ 1 << bit % 8]))
    seen = watch.deviation() is not None
    session.adapter.write(tensor.name, at, old)
    return seen


def out_of_reach(path: Path, cache: str, flips: int) -> None:
    """Flip bits of what the runtime keeps to itself, before it reads them, and run the canary."""
    with GuardedSession(
        path, options(), mode="sealed", cache=cache, settings=QUIET, scrub=None
    ) as session:
        runtime, watch = session._sealed, session._loaded.watch
        kept = {name for name, nbytes in runtime.model.entry.inline if nbytes}
        generator = np.random.default_rng(9)
        seen = 0
        for _ in range(flips):
            model = onnx.ModelProto.FromString(runtime.model.graph)
            inline = [tensor for name, tensor in initializers(model.graph) if name in kept]
            sizes = np.array([len(raw_bytes(tensor)) for tensor in inline], float)
            tensor = inline[generator.choice(len(inline), p=sizes / sizes.sum())]
            data = bytearray(raw_bytes(tensor))
            data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
            for field in ("int32_data", "int64_data", "float_data", "raw_data"):
                tensor.ClearField(field)
            tensor.raw_data = bytes(data)
            try:
                with runtime.making() as own, bounded_memory():
                    own.log_severity_level = 4
                    damaged = ort.InferenceSession(model.SerializeToString(), own)
                    answers = recorded(lambda feed, s=damaged: s.run(None, feed), watch._feeds)
                seen += answers != watch._outputs
            except RUNTIME_ERRORS:
                seen += 1
    nbytes = int(sizes.sum())
    print(f"    canary alone, {nbytes} bytes out of reach: {seen} of {flips} flips found")


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Have a shape that became absurd fail, not take the machine's memory."""
    former = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)


def alarms(name: str, path: Path, cache: str, runs: int) -> None:
    """Count what is said of a session in all modes while it serves undamaged."""
    manifest = fingerprint(path, file_digests=True)
    said: list[str] = []
    for seed, (threads, mode) in enumerate(MODES):
        made = ort.SessionOptions()
        made.intra_op_num_threads = threads
        settings = Settings(on_incident=(), step_bytes=STEP_BYTES, pace=Pace(rate=100 << 20))
        with GuardedSession(
            path, made, mode=mode, manifest=manifest, cache=cache, settings=settings
        ) as session:
            said += serve(session, name, runs // len(MODES), seed)
    print(f"    {len(said)} false alarms in {runs} runs {' '.join(said[:8])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs, flips and runs")
    parser.add_argument("--model", choices=REAL, action="append", help="only these")
    parser.add_argument("--part", choices=PARTS, action="append", help="only these")
    arguments = parser.parse_args()
    pairs, flips, packed_flips, runs = (11, 20, 200, 400) if arguments.quick else FULL
    print(f"onnxruntime {ort.__version__}, {platform.machine()}, one thread, {pairs} pairs")
    for name in arguments.model or REAL:
        path = REAL[name]()
        print(f"  {name}, {path.stat().st_size / 1e6:.1f} MB", flush=True)
        with tempfile.TemporaryDirectory() as cache:
            for part in arguments.part or PARTS:
                if part == "costs":
                    costs(path, cache, fingerprint(path), pairs)
                elif part == "flips":
                    repairs(path, cache, fingerprint(path), packed_flips)
                    canary_alone(path, cache, flips)
                    out_of_reach(path, cache, FLIPS_OUT_OF_REACH)
                else:
                    alarms(name, path, cache, runs)


if __name__ == "__main__":
    main()
