"""Which weights make the spikes: nominated by |W[row, j] * x[j]| where an output peaks.

The published search (arXiv 2411.07191) takes the greatest input and the greatest output of a
projection, and stalls where the greatest input does not meet the weight that matters. Here the
products themselves are compared, at the position and row of each projection's greatest output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightguard_integrations.torch.blocks import Tokens, run_blocks
from weightguard_integrations.torch.projections import Projection

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_CONTRIBUTORS = 3
"""Weights nominated for one spike."""
LEAST_MAGNITUDE = 1e-30
"""A median of zero must not divide."""


@dataclass(frozen=True, slots=True)
class Place:
    """One scalar weight: W[row, column] of a projection, called by its manifest name."""

    tensor: str
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Nominee:
    """A weight that takes part in a spike: |W * x| there, and that over the median |output|."""

    place: Place
    spike: float
    ratio: float


def nominate(model: nn.Module, projections: Sequence[Projection], prompt: Tokens) -> list[Nominee]:
    """Return the contributors to each projection's spike in one prompt, greatest ratio first."""
    import torch

    with _observed(projections) as seen:
        run_blocks(model, torch.tensor([list(prompt)]))
    found = [
        nominee
        for projection in projections
        if projection.name in seen
        for nominee in _contributors(projection, *seen[projection.name])
    ]
    return sorted(found, key=lambda n: (-n.ratio, n.place.tensor, n.place.row, n.place.column))


def spikes_of(
    model: nn.Module, projections: Sequence[Projection], prompt: Tokens, places: Sequence[Place]
) -> list[Nominee]:
    """Return the given weights with the greatest |W * x| that each has in one prompt."""
    import torch

    with _observed(projections) as seen:
        run_blocks(model, torch.tensor([list(prompt)]))
    by_tensor = {p.tensor: (p.weight, seen[p.name]) for p in projections if p.name in seen}
    found = []
    for place in places:
        if place.tensor in by_tensor:
            weight, (inputs, outputs) = by_tensor[place.tensor]
            product = abs(float(weight[place.row, place.column])) * float(
                inputs[:, place.column].abs().max()
            )
            found.append(Nominee(place, product, product / _typical(outputs)))
    return found


def _contributors(
    projection: Projection, inputs: torch.Tensor, outputs: torch.Tensor
) -> Iterator[Nominee]:
    """Yield the greatest contributors to the peak of ``outputs`` [positions, channels]."""
    position, row = divmod(int(outputs.abs().argmax()), outputs.shape[1])
    products = (projection.weight[row] * inputs[position]).abs()
    top = products.topk(min(MAX_CONTRIBUTORS, len(products)))
    for value, column in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        yield Nominee(Place(projection.tensor, row, column), value, value / _typical(outputs))


def _typical(outputs: torch.Tensor) -> float:
    return max(float(outputs.abs().median()), LEAST_MAGNITUDE)


@contextlib.contextmanager
def _observed(
    projections: Sequence[Projection],
) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Yield a dict of each projection's (input, output), both [positions, ...], by its name."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs[0].numel():  # an expert may get no token
                seen[name] = (inputs[0].flatten(0, -2), output.flatten(0, -2))

        return hook

    handles = [p.module.register_forward_hook(keep(p.name)) for p in projections]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
