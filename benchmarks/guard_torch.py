"""What guarding a PyTorch model costs the thread that serves, and how soon damage is found.

    python benchmarks/guard_torch.py [--quick] [--model NAME] [--dtype DTYPE] [--threads 1]

The guarded and the plain model are two trees of modules over the same weights. Their forward
passes alternate, one each, and a ratio is that of the CPU time of the serving thread over one
pair; of pairs the median is shown, with its standard error from the spread of the middle half. The
noise floor is the same ratio for a second plain model: what differs by less is not measured. The
background threads do what is due while the guarded model serves, and nothing while the plain one
does; the canary's, which runs once a minute, is told by itself. Below each table stands what the
parts take alone, at the least.
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
from torch import nn
from transformers import DynamicCache, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.guard_torch_models import MODELS, calibrated, load
from weightguard import Manifest
from weightguard.guard.background import Background
from weightguard_integrations.torch import TorchGuard, guard
from weightguard_integrations.torch.sentinels import Sentinels

PROMPT, PREFILL = 64, 128
STEP_BUDGET = 8 << 20
OFF: Mapping[str, Any] = {"scrub": None, "step_budget": 0, "sentinels": False, "canary": None}
PARTS: Mapping[str, Mapping[str, Any] | None] = {
    "plain again (noise floor)": None,
    "called, super weights": OFF,
    "  and sentinels": {**OFF, "sentinels": True},
    "  and step budget": {**OFF, "step_budget": "8MiB"},
    "  and background scrub": {**OFF, "scrub": "250MB/s"},
    "everything, as by default": {},
}
QUICK = ("plain again (noise floor)", "everything, as by default")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Served:
    """A model that one thread serves, and what runs beside it."""

    def __init__(self, model: LlamaForCausalLM, background: list[Background]):
        self.model, self._serving = model, False
        for thread in background:
            thread.stop()
            thread._act = self._while_serving(thread._act)
            thread.start()
        self._cache = DynamicCache()
        self._prompt(self._cache)

    def _while_serving(self, act: Callable[[], object]) -> Callable[[], object]:
        return lambda: act() if self._serving else None

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
        self._serving = True
        began = time.thread_time()
        run(steps)
        took = time.thread_time() - began
        self._serving = False
        return took


def twin(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return another tree of modules over the same tensors."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def contestants(
    model: LlamaForCausalLM, manifest: Manifest, stack: ExitStack, *, quick: bool
) -> Iterator[tuple[str, Served]]:
    for name in QUICK if quick else PARTS:
        settings = PARTS[name]
        copied = twin(model)
        background: list[Background] = []
        if settings is not None:
            made = stack.enter_context(guard(copied, manifest, on_incident=("log",), **settings))
            background = [t for t in made._presence._threads if t._name != "weightguard-canary"]
        yield name, Served(copied, background)


def paired(guarded: Served, plain: Served, mode: str, pairs: int) -> list[float]:
    """Return the ratios of the serving thread's CPU time, a pair of turns each."""
    a, b = (getattr(served, mode) for served in (guarded, plain))
    guarded.turn(a, 2)
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            second, first = plain.turn(b, 1), guarded.turn(a, 1)
        else:
            first, second = guarded.turn(a, 1), plain.turn(b, 1)
        ratios.append(first / second)
    return ratios


def costs(model: LlamaForCausalLM, manifest: Manifest, pairs: int, *, quick: bool) -> None:
    with ExitStack() as stack:
        plain = Served(twin(model), [])
        served = list(contestants(model, manifest, stack, quick=quick))
        for mode in ("decode", "prefill"):
            run = getattr(plain, mode)
            each = min(plain.turn(run, 1) for _ in range(9))
            what = "a token" if mode == "decode" else f"{PREFILL} tokens"
            print(f"    {mode}: {1e3 * each:.1f} ms for {what}, plain")
            for name, contestant in served:
                ratios = paired(contestant, plain, mode, pairs)
                low, middle, high = statistics.quantiles(ratios, n=4)
                # of a median of normal values, 1.25 times that of their mean
                error = 1.25 * (high - low) / 1.35 / pairs**0.5
                print(f"      {name:28s} {middle:6.3f} +- {error:.3f}", flush=True)
            parts(model, manifest, mode, each)


def parts(model: LlamaForCausalLM, manifest: Manifest, mode: str, each: float) -> None:
    """Print what the parts take by themselves, as shares of a plain forward pass."""
    length = 1 if mode == "decode" else PREFILL
    with guard(twin(model), manifest, scrub=None, on_incident=()) as made:
        assert made._canary is not None
        took = {
            "sentinels": sentinels_alone(model, manifest, length),
            "their reading": least(made.read_sentinels),
            "super weights": least(lambda: list(made._pins.moved())),
            "step budget, if all is left to the pass": least(lambda: made.scrub(STEP_BUDGET)),
        }
        shares = ", ".join(f"{part} {cpu / each:.2%}" for part, cpu in took.items())
        canary = least(made._canary.run, 3)
    print(f"      alone: {shares}; canary {canary / 60:.2%} of a core", flush=True)


def sentinels_alone(model: LlamaForCausalLM, manifest: Manifest, length: int) -> float:
    """Return the CPU seconds that sentinels add to blocks which do nothing."""
    calibration = manifest.document.calibration
    assert calibration is not None
    count, width = len(calibration.activation_bounds), model.config.hidden_size
    state = torch.randn(1, length, width).to(model.dtype)
    positions = torch.arange(length)[None]
    watched, bare = (nn.ModuleList(Passing() for _ in range(count)) for _ in "12")
    made = Sentinels(watched, calibration.massive_activations, calibration.activation_bounds, width)

    def run(blocks: nn.ModuleList) -> None:
        with torch.inference_mode():
            for block in blocks:
                block(state, position_ids=positions)

    added = least(lambda: run(watched)) - least(lambda: run(bare))
    made.remove()
    return added


class Passing(nn.Module):
    """A block that does nothing."""

    def forward(self, state: torch.Tensor, **_: object) -> torch.Tensor:
        return state


def least(function: Callable[[], object], times: int = 40) -> float:
    """Return the least CPU seconds of several calls, in which others disturbed the least."""
    best = float("inf")
    for _ in range(times):
        began = time.thread_time()
        function()
        best = min(best, time.thread_time() - began)
    return best


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
        for name in ("idle", "decoding"):
            for thread in made._presence._threads:
                thread.start()
            served, waits = Served(copied, []), []
            for _ in range(flips):
                time.sleep(generator.random() * 0.2)
                waits.append(
                    wait_for_flip(
                        made, served if name == "decoding" else None, parameters, generator
                    )
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
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="only these")
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    arguments = parser.parse_args()
    pairs, flips, seconds = (25, 5, 2) if arguments.quick else (151, 40, 10)
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {arguments.threads} threads, "
          f"{pairs} pairs")  # fmt: skip
    for name in arguments.model or MODELS:
        folder = MODELS[name]()
        with calibrated(folder) as manifest:
            for dtype in arguments.dtype or DTYPES:
                model = load(folder, manifest, DTYPES[dtype])
                print(f"  {name}, {dtype}", flush=True)
                costs(model, manifest, pairs, quick=arguments.quick)
                detection(model, manifest, flips, seconds)


if __name__ == "__main__":
    main()
