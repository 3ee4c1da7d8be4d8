"""What guarding a PyTorch model costs the thread that serves, and how soon damage is found.

    python benchmarks/guard_torch.py [--quick] [--model NAME] [--threads 1]

The guarded and the plain model are two trees of modules over the same weights. Their forward
passes alternate in short turns, and a ratio is that of the CPU time of the serving thread over one
pair of turns; of pairs the median is shown, with half the spread of the middle half. The noise
floor is the same ratio for a second plain model: what differs by less is not measured. The
background threads run while the guarded model serves, and only then.
"""

from __future__ import annotations

import argparse
import copy
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.guard_torch_models import MODELS, calibrated, load
from weightguard import Manifest
from weightguard.guard.background import Background
from weightguard_integrations.torch import TorchGuard, guard

PROMPT, PREFILL = 64, 256
TURN = 0.1
"""Seconds that a turn lasts at least: short beside what disturbs a shared machine."""
OFF: Mapping[str, Any] = {"scrub": None, "step_budget": 0, "sentinels": False, "canary": None}
PARTS: Mapping[str, Mapping[str, Any] | None] = {
    "plain again (noise floor)": None,
    "called, super weights": OFF,
    "  and sentinels": {**OFF, "sentinels": True},
    "  and step budget": {**OFF, "step_budget": "8MiB"},
    "  and background scrub": {**OFF, "scrub": "500MB/s"},
    "everything, as by default": {},
}


class Served:
    """A model that one thread serves, and what runs beside it."""

    def __init__(self, model: LlamaForCausalLM, background: list[Background]):
        self.model, self._background = model, background
        self._cache = DynamicCache()
        self._prompt(self._cache)

    def _prompt(self, cache: DynamicCache) -> None:
        with torch.inference_mode():
            self.model(torch.arange(1, PROMPT + 1)[None], past_key_values=cache, use_cache=True)

    def decode(self, steps: int) -> None:
        """Decode tokens after a prompt, one by one."""
        with torch.inference_mode():
            for token in range(steps):
                tokens = torch.tensor([[token + 1]])
                self.model(tokens, past_key_values=self._cache, use_cache=True)
            self._cache.crop(-steps)

    def prefill(self, steps: int) -> None:
        """Run prompts."""
        with torch.inference_mode():
            for first in range(steps):
                self.model(torch.arange(first, first + PREFILL)[None], use_cache=False)

    def turn(self, run: Callable[[int], None], steps: int) -> float:
        """Return the CPU seconds that the calling thread takes for some passes."""
        for thread in self._background:
            thread.start()
        began = time.thread_time()
        run(steps)
        took = time.thread_time() - began
        for thread in self._background:
            thread.stop()
        return took


def twin(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return another tree of modules over the same tensors."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def contestants(
    model: LlamaForCausalLM, manifest: Manifest, stack: ExitStack
) -> Iterator[tuple[str, Served]]:
    for name, settings in PARTS.items():
        copied = twin(model)
        background: list[Background] = []
        if settings is not None:
            made = stack.enter_context(guard(copied, manifest, on_incident=("log",), **settings))
            background = made._presence._threads
        yield name, Served(copied, background)


def paired(guarded: Served, plain: Served, mode: str, pairs: int) -> list[float]:
    """Return the ratios of the serving thread's CPU time, a pair of turns each."""
    a, b = (getattr(served, mode) for served in (guarded, plain))
    guarded.turn(a, 2)
    steps = max(1, round(TURN * 4 / plain.turn(b, 4)))
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            second, first = plain.turn(b, steps), guarded.turn(a, steps)
        else:
            first, second = guarded.turn(a, steps), plain.turn(b, steps)
        ratios.append(first / second)
    return ratios


def costs(model: LlamaForCausalLM, manifest: Manifest, pairs: int) -> None:
    with ExitStack() as stack:
        plain = Served(twin(model), [])
        served = list(contestants(model, manifest, stack))
        for mode in ("decode", "prefill"):
            run = getattr(plain, mode)
            each = min(plain.turn(run, 4) / 4 for _ in range(3))
            what = "a token" if mode == "decode" else f"{PREFILL} tokens"
            print(f"    {mode}: {1e3 * each:.1f} ms for {what}, plain")
            for name, contestant in served:
                ratios = paired(contestant, plain, mode, pairs)
                low, middle, high = statistics.quantiles(ratios, n=4)
                print(f"      {name:28s} {middle:6.3f} +- {(high - low) / 2:.3f}", flush=True)


def background_share(made: TorchGuard, seconds: float) -> tuple[float, float]:
    """Return what share of a core the scrub thread takes by itself, and its bytes a second."""
    (thread,) = (t for t in made._presence._threads if t._name == "weightguard-scrub")
    thread.start()
    assert thread._thread is not None
    assert thread._thread.ident is not None
    clock = time.pthread_getcpuclockid(thread._thread.ident)
    scrubbed = made.metrics.value("weightguard_scrub_bytes_total")  # type: ignore[attr-defined]
    cpu, wall = time.clock_gettime(clock), time.perf_counter()
    time.sleep(seconds)
    share = (time.clock_gettime(clock) - cpu) / (time.perf_counter() - wall)
    scrubbed = made.metrics.value("weightguard_scrub_bytes_total") - scrubbed  # type: ignore[attr-defined]
    thread.stop()
    return share, scrubbed / seconds


def detection(model: LlamaForCausalLM, manifest: Manifest, flips: int, seconds: float) -> None:
    """Flip bits at any time, while tokens are decoded, and wait for the incident."""
    copied, generator = twin(model), random.Random(0)
    parameters = dict(copied.named_parameters())
    with guard(copied, manifest, on_incident=("repair",), canary=None) as made:
        share, rate = background_share(made, seconds)
        print(f"    scrub thread: {share:.2%} of a core at {rate / 1e6:.0f} MB/s")
        nbytes = made.status().pass_bytes
        for name, settings in {"idle": 0, "decoding": 1}.items():
            for thread in made._presence._threads:
                thread.start()
            served, waits = Served(copied, []), []
            for _ in range(flips):
                time.sleep(generator.random() * 0.2)
                waits.append(
                    wait_for_flip(made, served if settings else None, parameters, generator)
                )
            print(
                f"    {name}: {flips} flips found after {statistics.median(waits):.2f} s (median), "
                f"{max(waits):.2f} s at most; a pass of {nbytes / 1e6:.0f} MB takes "
                f"{nbytes / rate:.2f} s at the rate"
            )


def wait_for_flip(
    made: TorchGuard,
    served: Served | None,
    parameters: Mapping[str, torch.nn.Parameter],
    generator: random.Random,
) -> float:
    """Flip a bit and return the seconds until it is an incident; it is repaired then."""
    weight = generator.choice(list(parameters.values()))
    at, seen = generator.randrange(weight.nbytes), len(made.incidents)
    flat = weight.detach().view(-1).view(torch.uint8).numpy()
    flat[at] ^= np.uint8(1 << generator.randrange(8))
    began = time.perf_counter()
    while len(made.incidents) < seen + 2:
        if served is None:
            time.sleep(0.001)
        else:
            served.decode(1)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer pairs and flips")
    parser.add_argument("--model", choices=MODELS, action="append", help="only these")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    arguments = parser.parse_args()
    pairs, flips, seconds = (15, 5, 2) if arguments.quick else (101, 40, 10)
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} threads, "
          f"{pairs} pairs")  # fmt: skip
    for name in arguments.model or MODELS:
        folder = MODELS[name]()
        with calibrated(folder) as manifest:
            for dtype in (torch.bfloat16, torch.float32):
                model = load(folder, manifest, dtype)
                print(f"  {name}, {dtype}", flush=True)
                costs(model, manifest, pairs)
                detection(model, manifest, flips, seconds)


if __name__ == "__main__":
    main()
