"""Massive activations: found by their definition, bounded by bands, tried on held-out prompts.

A band on every channel raises false alarms in a third of sound prompts and more. So only the
massive channels get a band, where they live; all others of a layer share one upper bound.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightguard.calibration import FalseAlarms, LayerBand, MassiveActivation, PromptCount
from weightguard.errors import WeightguardError
from weightguard.salient import significant
from weightguard_integrations.torch.blocks import Tokens, hidden_states, padded_batches, run_blocks

if TYPE_CHECKING:
    import torch
    from torch import nn

MASSIVE_MAGNITUDE = 100.0
MASSIVE_OVER_MEDIAN = 1000.0
"""The definition of arXiv 2402.17762: above 100 and above 1000 times the median magnitude."""
SHARE_OF_PROMPTS = 0.9
"""A channel is massive in a layer where it is in this share of the prompts, 1 of 10 may differ."""
BAND_FACTOR = 1.5
BAND_QUANTILE = 0.01
"""A band spans the quantiles of the values seen, widened by the factor. On SmolLM2-135M-Instruct
3 of 10,000 tokens make no massive activation: the extrema themselves could mean nothing."""
BOUND_FACTOR = 2.0
"""The other channels' bound over the greatest magnitude that any of them had in calibration."""
MIN_TOKENS = 16
"""Prompts from this length on tell the median of a layer: of one token it is not typical."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one prompt showed: all tensors are [layers, channels] but medians, [layers].

    ``peaks`` are the signed values of greatest magnitude over real positions, ``places`` these
    positions, ``firsts`` the values at position 0.
    """

    tokens: int
    peaks: torch.Tensor
    places: torch.Tensor
    firsts: torch.Tensor
    medians: torch.Tensor

    def value(self, layer: int, channel: int, position: int | None) -> float:
        """Return the value that a band of a massive activation judges."""
        values = self.peaks if position is None else self.firsts
        return float(values[layer, channel])


def profiles(
    model: nn.Module, blocks: nn.ModuleList, sequences: Sequence[Tokens]
) -> Iterator[Profile]:
    """Yield the profile of each sequence; shorter ones come first."""
    with hidden_states(blocks) as states:
        for tokens, lengths in padded_batches(sequences):
            run_blocks(model, tokens)
            for number, length in enumerate(lengths):
                yield profile([state[number, :length] for state in states])


def profile(states: Sequence[torch.Tensor]) -> Profile:
    """Return the profile of one prompt from the blocks' outputs [positions, channels].

    Raises WeightguardError where they are not finite.
    """
    import torch

    peaks, places, firsts, medians = [], [], [], []
    for state in states:
        values = state.float()
        magnitudes = values.abs()
        place = magnitudes.argmax(0)
        peaks.append(values.gather(0, place[None])[0])
        places.append(place)
        firsts.append(values[0])
        medians.append(magnitudes.median())
    stacked = torch.stack(peaks)
    if not stacked.isfinite().all():
        raise WeightguardError(
            "the model computes NaN or infinities, so nothing can be calibrated. "
            "`weightguard audit` looks for damaged weights."
        )
    return Profile(
        len(states[0]), stacked, torch.stack(places), torch.stack(firsts), torch.stack(medians)
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """The bands of massive activations and one bound a layer for all other channels."""

    massive: tuple[MassiveActivation, ...]
    bounds: tuple[float, ...]

    def exceeded(self, seen: Profile, *, decoding: bool = False) -> bool:
        """Return whether a prompt leaves a band or a bound; bands hold during prefill only."""
        return self._leaves_bounds(seen) or (not decoding and self._leaves_bands(seen))

    def _leaves_bands(self, seen: Profile) -> bool:
        return any(
            not band.low <= seen.value(band.layer, m.channel, m.position) <= band.high
            for m in self.massive
            for band in m.bands
        )

    def _leaves_bounds(self, seen: Profile) -> bool:
        greatest = _greatest_others(seen, _massive_channels(self.massive))
        return any(value > bound for value, bound in zip(greatest, self.bounds, strict=True))


def calibrate_limits(seen: Sequence[Profile]) -> Limits:
    """Return the limits that the calibration prompts' profiles give."""
    massive = tuple(
        MassiveActivation(channel, position, _bands(seen, channel, position, layers))
        for (channel, position), layers in _find_massive(seen).items()
    )
    skipped = _massive_channels(massive)
    greatest = [_greatest_others(profile, skipped) for profile in seen]
    bounds = tuple(significant(BOUND_FACTOR * max(layer)) for layer in zip(*greatest, strict=True))
    return Limits(massive, bounds)


def _find_massive(seen: Sequence[Profile]) -> dict[tuple[int, int | None], list[int]]:
    """Return the layers of each massive (channel, position)."""
    typical = [p for p in seen if p.tokens >= MIN_TOKENS]
    hits: Counter[tuple[int, int]] = Counter()
    at_first: Counter[tuple[int, int]] = Counter()
    for p in typical:
        magnitudes = p.peaks.abs()
        massive = (magnitudes > MASSIVE_MAGNITUDE) & (
            magnitudes > MASSIVE_OVER_MEDIAN * p.medians[:, None]
        )
        for layer, channel in massive.nonzero().tolist():
            hits[layer, channel] += 1
            at_first[layer, channel] += int(p.places[layer, channel]) == 0
    found: dict[tuple[int, int | None], list[int]] = defaultdict(list)
    for (layer, channel), count in sorted(hits.items()):
        if count >= SHARE_OF_PROMPTS * len(typical):
            settled = at_first[layer, channel] >= SHARE_OF_PROMPTS * len(typical)
            found[channel, 0 if settled else None].append(layer)
    return found


def _bands(
    seen: Sequence[Profile], channel: int, position: int | None, layers: Iterable[int]
) -> tuple[LayerBand, ...]:
    # where the position moves, a prompt of one token need not hold the activation at all
    used = [p for p in seen if position is not None or p.tokens >= MIN_TOKENS]
    bands = []
    for layer in layers:
        low, high = _quantiles([p.value(layer, channel, position) for p in used])
        bands.append(LayerBand(layer, significant(_widen(low, down=True)),
                               significant(_widen(high, down=False))))  # fmt: skip
    return tuple(bands)


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    ranked = sorted(values)
    cut = int(BAND_QUANTILE * len(ranked))
    return ranked[cut], ranked[len(ranked) - 1 - cut]


def _widen(value: float, *, down: bool) -> float:
    """Return an end of a band moved away from the other end."""
    return value / BAND_FACTOR if down == (value > 0) else value * BAND_FACTOR


def _massive_channels(massive: Iterable[MassiveActivation]) -> list[tuple[int, int]]:
    return [(band.layer, m.channel) for m in massive for band in m.bands]


def _greatest_others(seen: Profile, skipped: Iterable[tuple[int, int]]) -> list[float]:
    magnitudes = seen.peaks.abs()
    for layer, channel in skipped:
        magnitudes[layer, channel] = 0
    greatest: list[float] = magnitudes.amax(1).tolist()
    return greatest


def count_alarms(judged: Iterable[tuple[str, bool]]) -> FalseAlarms:
    """Return how many of (kind of prompt, raised an alarm) did, by kind."""
    prompts: Counter[str] = Counter()
    alarms: Counter[str] = Counter()
    for kind, alarm in judged:
        prompts[kind] += 1
        alarms[kind] += alarm
    by_kind = {kind: PromptCount(prompts[kind], alarms[kind]) for kind in sorted(prompts)}
    return FalseAlarms(prompts.total(), alarms.total(), by_kind)
