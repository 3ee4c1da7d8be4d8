"""Single bit flips in a real model: what each does, which checks see it, what the checks cost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import blake3
import numpy as np
import torch
import xxhash
from superweights_model import LAYER, ROW, SEED, Bench, capped, flat

from weightguard.errors import WeightguardError
from weightguard_integrations.torch.activations import profile
from weightguard_integrations.torch.blocks import batches, hidden_states, mean_loss
from weightguard_integrations.torch.canary import final_logits
from weightguard_integrations.torch.projections import Projection

HARM = 0.1
"""Nats a token: a flip that raises perplexity by over 10 % is harmful."""

CHECKS = {
    "digest": "digest of the tensor (BLAKE3)",
    "extrema": "exact extrema of the tensor",
    "row_absmax": "exact greatest magnitude of each row",
    "band": "activation band and bounds, one prompt",
    "canary_bits": "canary, bit for bit",
    "canary": "canary, beyond the float32 tolerance",
    "super_weights": "exact bits of the recorded super weights",
    "nan_weights": "NaN or infinity in the weights",
    "nan_logits": "NaN or infinity in the logits",
}


@dataclass(frozen=True)
class Flip:
    """One flipped bit, what it did, and which checks saw it."""

    dtype: str
    aim: str
    tensor: str
    element: int
    bit: int
    old: float
    new: float
    perplexity: float
    harmful: bool
    seen: tuple[str, ...]


def draw_flips(bench: Bench, count: int) -> Iterator[tuple[str, str, str, int, int]]:
    """Yield (dtype, aim, tensor, element, bit): half uniform, half at exponents and outliers."""
    generator = np.random.default_rng(SEED)
    names = sorted(bench.weights)
    sizes = np.array([bench.weights[n].numel() for n in names], np.float64)
    outliers = [
        (p, flat(p.weight, weight.index[0], weight.index[1]))
        for weight in bench.manifest.document.salience.super_weights
        for p in bench.projections
        if p.tensor == weight.tensor
    ]
    for number in range(count):
        dtype = ("bf16", "fp32")[number % 2]
        aim = ("uniform", "exponent", "uniform", "outlier")[number // 2 % 4]
        width, low, high = {"bf16": (16, 7, 15), "fp32": (32, 23, 31)}[dtype]
        bit = int(generator.integers(width) if aim == "uniform" else generator.integers(low, high))
        if aim == "outlier":
            projection, element = outliers[int(generator.integers(len(outliers)))]
            yield dtype, aim, parameter_name(bench, projection), element, bit
            continue
        name = str(generator.choice(names, p=sizes / sizes.sum()))
        yield dtype, aim, name, int(generator.integers(bench.weights[name].numel())), bit


def parameter_name(bench: Bench, projection: Projection) -> str:
    return next(n for n in bench.weights if n.endswith(f"{projection.name}.weight"))


def run_flip(bench: Bench, dtype: str, aim: str, name: str, element: int, bit: int) -> Flip:
    weight = bench.weights[name]
    bits = weight.view(torch.int32).view(-1)
    place = bit + 16 if dtype == "bf16" else bit
    before, old = facts(weight, element), float(weight.view(-1)[element])
    mask = (1 << place) - (1 << 32 if place == 31 else 0)
    bits[element] ^= mask
    try:
        new = float(weight.view(-1)[element])
        after = facts(weight, element)
        seen = [
            name_ for name_ in ("digest", "extrema", "row_absmax") if before[name_] != after[name_]
        ]
        seen += ["nan_weights"] if not math.isfinite(new) else []
        seen += ["super_weights"] if is_recorded(bench, name, element) else []
        loss, alarms = observe(bench)
        seen += alarms
    finally:
        bits[element] ^= mask
    harmful = not loss - bench.short_loss <= HARM
    return Flip(dtype, aim, name, element, bit, old, new, capped(loss), harmful, tuple(seen))


def facts(weight: torch.Tensor, element: int) -> dict[str, object]:
    row = weight[element // weight.shape[1]]
    return {
        "digest": blake3.blake3(weight.numpy().view(np.uint8).data).digest(),
        "extrema": (bits_of(weight.min()), bits_of(weight.max())),
        "row_absmax": bits_of(row.abs().max()),
    }


def bits_of(value: torch.Tensor) -> int:
    return int(value.reshape(1).view(torch.int32))


def is_recorded(bench: Bench, name: str, element: int) -> bool:
    for projection in bench.projections:
        if name.endswith(f"{projection.name}.weight"):
            index = divmod(element, projection.weight.shape[1])
            weights = bench.manifest.document.salience.super_weights
            return any((w.tensor, w.index) == (projection.tensor, index) for w in weights)
    return False


def observe(bench: Bench) -> tuple[float, list[str]]:
    """Return the loss over the short texts, and which checks of a forward pass raise an alarm."""
    with hidden_states(bench.blocks) as states:
        (tokens,) = batches([bench.short[0]])
        bench.model(input_ids=tokens, use_cache=False)
        alarms = ["band"] if leaves_limits(bench, [state[0] for state in states]) else []
    logits = final_logits_unchecked(bench)
    if not torch.equal(logits, bench.canary):
        alarms.append("canary_bits")
    if not float((logits - bench.canary).abs().max()) <= bench.tolerance:
        alarms.append("canary")
    if not logits.isfinite().all():
        alarms.append("nan_logits")
    return mean_loss(bench.model, bench.short), alarms


def final_logits_unchecked(bench: Bench) -> torch.Tensor:
    tokens = torch.tensor([list(bench.prompts.canary)])
    logits: torch.Tensor = bench.model(input_ids=tokens, use_cache=False).logits[0, -1]
    return logits


def leaves_limits(bench: Bench, states: Sequence[torch.Tensor]) -> bool:
    try:
        return bench.limits.exceeded(profile(states))
    except WeightguardError:
        return True  # not finite, which no band holds


def costs(bench: Bench) -> dict[str, str]:
    """Return what one round of each check costs for the whole model, in milliseconds."""
    weights = list(bench.weights.values())
    halves = [w.bfloat16().view(torch.uint8).numpy() for w in weights]
    tokens = torch.tensor([list(bench.short[0])])

    def forward() -> None:
        bench.model(input_ids=tokens, use_cache=False)

    def watched() -> None:
        with hidden_states(bench.blocks) as states:
            forward()
            leaves_limits(bench, [state[0] for state in states])

    length = tokens.numel()
    extra = median_ms(watched, 15) - median_ms(forward, 15)
    watching = f"{extra:.0f} ms" if extra >= 1 else "below 1 ms"
    digest = median_ms(lambda: [blake3.blake3(h.data).digest() for h in halves])
    fast = median_ms(lambda: [xxhash.xxh3_128_digest(h.data) for h in halves])
    canary = f"{median_ms(lambda: final_logits(bench.model, bench.prompts.canary)):.0f} ms"
    recorded = bench.manifest.document.salience.super_weights
    values = bench.down(LAYER)
    return {
        "digest": f"{digest:.0f} ms (block digests, XXH3: {fast:.0f} ms)",
        "extrema": f"{median_ms(lambda: [(w.min(), w.max()) for w in weights]):.0f} ms in torch",
        "row_absmax": f"{median_ms(lambda: [w.abs().amax(1) for w in weights]):.0f} ms in torch",
        "band": f"{watching} a prompt of {length} tokens",
        "canary_bits": canary,
        "canary": canary,
        "super_weights": f"{median_ms(lambda: [values[ROW, 0].item() for _ in recorded]):.2f} ms",
        "nan_weights": f"{median_ms(lambda: [w.isfinite().all() for w in weights]):.0f} ms",
        "nan_logits": "below 0.1 ms a step",
    }


def median_ms(action: Callable[[], object], rounds: int = 5) -> float:
    runs = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        runs.append(1000 * (time.perf_counter() - start))
    return statistics.median(runs)
