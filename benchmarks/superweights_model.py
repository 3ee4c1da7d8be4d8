"""The model of the super weight experiments, and what zeroing, scaling and rounding do to it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch

from tests.real_models import smollm2_gguf
from weightguard import Manifest, fingerprint, open_checkpoint
from weightguard_integrations.torch.ablation import Search
from weightguard_integrations.torch.activations import Limits, calibrate_limits, profiles
from weightguard_integrations.torch.blocks import Tokens, find_blocks, mean_loss
from weightguard_integrations.torch.calibrate import known_places
from weightguard_integrations.torch.canary import final_logits, record_canary
from weightguard_integrations.torch.loading import load_model
from weightguard_integrations.torch.projections import find_projections
from weightguard_integrations.torch.prompts import Prompts, make_prompts
from weightguard_integrations.torch.spikes import nominate
from weightguard_integrations.torch.steps import Steps

SEED = 11
LAYER, ROW, COLUMNS = 11, 507, (1229, 1487)
HARMLESS_SPIKE = (28, 507, 678)
MAX_PERPLEXITY = 1e9
FACTORS = (-1.0, -0.5, -0.1, 0.0, 0.1, 0.25, 0.5, 0.75, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 4.0, 8.0,
           16.0)  # fmt: skip


class Bench:
    """The model, its projections and texts, and everything a check compares with."""

    def __init__(self) -> None:
        path = smollm2_gguf()
        with open_checkpoint(path) as checkpoint:
            loaded = load_model(path, checkpoint)
        self.model = loaded.model
        self.manifest: Manifest = fingerprint(path)
        self.projections = find_projections(self.model, self.manifest.document)
        self.prompts: Prompts = make_prompts(loaded.encode, loaded.vocabulary, None, 512)
        self.blocks = find_blocks(self.model, loaded.config)
        for weight in self.live_weights().values():
            weight.copy_(weight.bfloat16().float())
        self.texts: Sequence[Tokens] = [t for t in self.prompts.activations if len(t) > 1]
        self.short: Sequence[Tokens] = self.prompts.loss
        self.limits: Limits = calibrate_limits(
            list(profiles(self.model, self.blocks, self.prompts.activations))
        )
        canary = record_canary(self.model, self.prompts.canary)
        self.canary = final_logits(self.model, self.prompts.canary)
        self.tolerance = canary.record.tolerances["float32"]
        self.short_loss = mean_loss(self.model, self.short)
        # only now: recording a canary casts the model there and back, into new memory
        self.weights = self.live_weights()

    def live_weights(self) -> dict[str, torch.Tensor]:
        """Return the matrices that the model computes with, by parameter name."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.ndim == 2}

    def perplexity(self, sequences: Sequence[Tokens] | None = None) -> float:
        return capped(mean_loss(self.model, self.texts if sequences is None else sequences))

    def down(self, layer: int) -> torch.Tensor:
        return self.projections[layer].weight

    @contextlib.contextmanager
    def changed(self, weight: torch.Tensor, places: torch.Tensor, values: object) -> Iterator[None]:
        """Set flat ``places`` of a weight for a while."""
        flat = weight.view(-1)
        saved = flat[places].clone()
        flat[places] = torch.as_tensor(values, dtype=flat.dtype)
        try:
            yield
        finally:
            flat[places] = saved


def capped(loss: float) -> float:
    return min(math.exp(min(loss, 50.0)), MAX_PERPLEXITY)


def flat(weight: torch.Tensor, row: int, column: int) -> int:
    return row * weight.shape[1] + column


def zeroing(bench: Bench) -> list[tuple[str, float]]:
    """Return what was zeroed, with the perplexity that it left."""
    weight = bench.down(LAYER)
    first, second = (flat(weight, ROW, column) for column in COLUMNS)
    rows = [("nothing", bench.perplexity())]
    for words, places in (
        (f"[{ROW},{COLUMNS[0]}] of layer {LAYER}", [first]),
        (f"[{ROW},{COLUMNS[1]}] of layer {LAYER}", [second]),
        ("both super weights", [first, second]),
    ):
        with bench.changed(weight, torch.tensor(places), 0.0):
            rows.append((words, bench.perplexity()))
    layer, row, column = HARMLESS_SPIKE
    other = bench.down(layer)
    with bench.changed(other, torch.tensor([flat(other, row, column)]), 0.0):
        rows.append((f"[{row},{column}] of layer {layer}, the harmless spike", bench.perplexity()))
    return rows + crowds(bench, {first, second})


def crowds(bench: Bench, spared: set[int]) -> list[tuple[str, float]]:
    """Zero many of the largest and of random weights of all down projections, sparing the two."""
    weights = [projection.weight for projection in bench.projections]
    magnitudes = torch.stack([w.abs() for w in weights])
    magnitudes[LAYER].view(-1)[list(spared)] = -1
    order = magnitudes.view(-1).topk(7000).indices
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randperm(magnitudes.numel(), generator=generator)[:7000]
    rows = []
    for count in (100, 1000, 7000):
        for words, places in (("largest other", order), ("random", drawn)):
            with contextlib.ExitStack() as stack:
                size = weights[0].numel()
                for number, weight in enumerate(weights):
                    mine = places[:count][places[:count] // size == number] % size
                    stack.enter_context(bench.changed(weight, mine, 0.0))
                rows.append((f"{count:,} {words} weights", bench.perplexity()))
    return rows


def scaling(bench: Bench) -> list[tuple[float, float, float]]:
    """Return factor, perplexity with the first super weight scaled, and with both."""
    weight = bench.down(LAYER)
    places = torch.tensor([flat(weight, ROW, column) for column in COLUMNS])
    values = weight.view(-1)[places].clone()
    rows = []
    for factor in FACTORS:
        with bench.changed(weight, places[:1], values[:1] * factor):
            one = bench.perplexity()
        with bench.changed(weight, places, values * factor):
            rows.append((factor, one, bench.perplexity()))
    return rows


def ternary(bench: Bench) -> list[tuple[str, float]]:
    """Quantise layer 11's down projection to three values (absmean), then restore two scalars."""
    weight = bench.down(LAYER)
    saved = weight.clone()
    scale = saved.abs().mean()
    quantised = (saved / scale).round().clamp(-1, 1) * scale
    weight.copy_(quantised)
    try:
        rows = [(f"down projection of layer {LAYER} in three values", bench.perplexity())]
        places = torch.tensor([flat(weight, ROW, column) for column in COLUMNS])
        with bench.changed(weight, places, saved.view(-1)[places]):
            rows.append(("the same, two scalars restored", bench.perplexity()))
    finally:
        weight.copy_(saved)
    return rows


def search(bench: Bench) -> list[tuple[str, float, float, bool]]:
    """Return (weights, spike, loss change, confirmed) of every ablation, greatest first."""
    sequences = bench.prompts.loss
    steps = Steps(1, None)
    found = Search(
        bench.model, bench.projections, sequences, mean_loss(bench.model, sequences), steps
    ).run(known_places(bench.manifest.document, bench.projections))
    return [
        (" and ".join(f"{p.tensor}[{p.row},{p.column}]" for p in e.places),
         e.spike, e.loss_change, e.confirmed)
        for e in found
    ]  # fmt: skip


def spikes(bench: Bench) -> list[tuple[int, float]]:
    """Return (layer, greatest |W x|) of each projection's spike in one prompt."""
    peaks: dict[str, float] = {}
    for nominee in nominate(bench.model, bench.projections, bench.prompts.loss[0]):
        tensor = nominee.place.tensor
        peaks[tensor] = max(peaks.get(tensor, 0), nominee.spike)
    return [(p.layer, peaks[p.tensor]) for p in bench.projections]
