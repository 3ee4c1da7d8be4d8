"""What zeroing a weight does to the loss: the only proof that it is a super weight."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from weightguard.salient import significant
from weightguard_integrations.torch.blocks import Tokens, mean_loss
from weightguard_integrations.torch.projections import Projection
from weightguard_integrations.torch.spikes import Nominee, Place, nominate, spikes_of
from weightguard_integrations.torch.steps import Steps

if TYPE_CHECKING:
    from torch import nn

CONFIRMATION_THRESHOLD = 0.1
"""Nats a token: 10 % more perplexity from one scalar. On SmolLM2-135M-Instruct, the one model it
was chosen on, single effects below it reach 0.097 and above it start at 0.22."""
MAX_ROUNDS = 4
FIRST_NOMINEES = 24
"""Weights tried in the first round, those with the greatest spikes; later rounds try fewer."""
LATER_NOMINEES = 8
MAX_PAIRED = 3
"""Weights of one row that are tried in pairs."""
MAX_LOSS_CHANGE = 1000.0
"""Recorded in place of more, and of an infinite loss."""


@dataclass(frozen=True, slots=True)
class Effect:
    """One or two weights of a row zeroed together, the loss change, and whether it counts."""

    places: tuple[Place, ...]
    spike: float
    loss_change: float
    confirmed: bool


@dataclass(slots=True)
class Search:
    """Nominates, zeroes and measures, until nothing new has an effect.

    ``sequences`` are the tokens that the loss is taken over, the first the prompt of spikes.
    """

    model: nn.Module
    projections: Sequence[Projection]
    sequences: Sequence[Tokens]
    baseline: float
    steps: Steps
    _spikes: dict[Place, float] = field(default_factory=dict)
    _effects: dict[tuple[Place, ...], Effect] = field(default_factory=dict)

    def run(self, known: Iterable[Place] = ()) -> list[Effect]:
        """Return all measured effects, the greatest first.

        ``known`` are weights to try in any case, such as those nominated from weights alone.
        """
        self._try(spikes_of(self.model, self.projections, self.sequences[0], tuple(known)))
        limit = FIRST_NOMINEES
        for _ in range(MAX_ROUNDS):
            with self._zeroed(confirmed_places(self._effects.values())):
                nominees = nominate(self.model, self.projections, self.sequences[0])
            before = confirmed_places(self._effects.values())
            self._try([n for n in nominees[:limit] if n.place not in self._spikes])
            if confirmed_places(self._effects.values()) == before:
                break
            limit = LATER_NOMINEES
        return sorted(self._effects.values(), key=lambda e: (-e.loss_change, _order(e.places)))

    def _try(self, nominees: Sequence[Nominee]) -> None:
        """Zero each nominee alone, then in pairs with the others of its row."""
        for nominee in nominees:
            self._spikes[nominee.place] = nominee.spike
            self._measure((nominee.place,))
        fresh = {nominee.place for nominee in nominees}
        rows: dict[tuple[str, int], list[Place]] = {}
        for place in self._spikes:
            rows.setdefault((place.tensor, place.row), []).append(place)
        for places in rows.values():
            ranked = sorted(places, key=lambda p: (-self._spikes[p], p.column))[:MAX_PAIRED]
            for pair in combinations(sorted(ranked, key=lambda p: p.column), 2):
                if fresh & set(pair):
                    self._measure(pair)

    def _measure(self, places: tuple[Place, ...]) -> None:
        with self._zeroed(places):
            loss = mean_loss(self.model, self.sequences)
        change = significant(min(loss - self.baseline, MAX_LOSS_CHANGE))
        alone = [self._effects[p,].loss_change for p in places if len(places) > 1]
        confirmed = change - max(alone, default=0.0) >= CONFIRMATION_THRESHOLD
        spike = significant(max(self._spikes[place] for place in places))
        self._effects[places] = Effect(places, spike, change, confirmed)
        self.steps.advance()

    @contextlib.contextmanager
    def _zeroed(self, places: Iterable[Place]) -> Iterator[None]:
        weights = {projection.tensor: projection.weight for projection in self.projections}
        saved = [(p, weights[p.tensor][p.row, p.column].clone()) for p in places]
        try:
            for place, _ in saved:
                weights[place.tensor][place.row, place.column] = 0
            yield
        finally:
            for place, value in saved:
                weights[place.tensor][place.row, place.column] = value


def confirmed_places(effects: Iterable[Effect]) -> dict[Place, float]:
    """Return every confirmed weight with the greatest confirmed effect it has a part in."""
    found: dict[Place, float] = {}
    for effect in effects:
        for place in effect.places if effect.confirmed else ():
            found[place] = max(effect.loss_change, found.get(place, 0.0))
    return dict(sorted(found.items(), key=lambda item: (-item[1], _order((item[0],)))))


def _order(places: tuple[Place, ...]) -> list[tuple[str, int, int]]:
    return [(p.tensor, p.row, p.column) for p in places]
