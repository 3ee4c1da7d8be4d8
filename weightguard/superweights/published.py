"""Published super weights, as data, and whether a checkpoint descends from a model that has them.

Shapes and configuration alone do not say so: unrelated models share them, and a retrained model has
its super weights elsewhere. A checkpoint counts as a descendant only on evidence in its weights or
its own name; without evidence nothing is claimed about it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeAlias

import msgspec

from weightguard.salient import OutlierChannel, SuperWeight
from weightguard.scan.formats import FORMATS
from weightguard.scan.values import exact_bits
from weightguard.superweights.nominate import MIN_COLUMN_RATIO, column_ratio
from weightguard.superweights.projections import Projection
from weightguard.tensor import TensorView

REGISTRY = "published.json"

SPARE_VOCABULARY = 64
"""Rows that descendants add to an embedding: tokens of their own, or padding."""

SCALE_RANGE = (0.8, 16.0)
"""w over its published value within which a super weight does its work: SmolLM2's perplexity is 5 %
higher at 0.8 and no higher at 16 (docs/evidence/superweights.md)."""

LOST_BELOW = 0.1
"""|w| over the published |w| below which nothing is left of it: perplexity is that of zero."""

SAME_RANGE = (0.8, 1.25)
"""w over its published value of a weight that is still the published one; quantisation and
fine-tuning stay within it (SmolLM2's Q4_1 values are within 0.1 %)."""

HEAVY_SHARE = 0.25
"""Output projections of which the published row must be an outlier to be evidence: half of
SmolLM2's 30."""

State: TypeAlias = Literal["alive", "lost", "not-finite", "flipped", "shrunk", "grown"]


class PublishedWeight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Coordinates of a super weight: row is the output channel; the value where it is known."""

    layer: int
    row: int
    column: int
    value: float | None = None


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model with published super weights.

    ``names`` are lower-case pieces of what its descendants call it, ``config`` entries of
    config.json that tell it from models of the same shapes, ``source`` a key of the sources.
    """

    model: str
    names: tuple[str, ...]
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    config: dict[str, str | int]
    source: str
    weights: tuple[PublishedWeight, ...]


class Registry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All bases, and what their sources are."""

    sources: dict[str, str]
    bases: tuple[Base, ...]


@dataclass(frozen=True, slots=True)
class PublishedState:
    """A published weight as it is in a checkpoint."""

    published: PublishedWeight
    projection: Projection
    element: int
    bits: int
    value: float
    ratio: float
    state: State

    @property
    def is_published(self) -> bool:
        """Whether it does its work and, where the published value is known, has that value."""
        known = self.published.value
        low, high = SAME_RANGE
        return self.state == "alive" and (known is None or low <= self.value / known <= high)


@dataclass(frozen=True, slots=True)
class Lineage:
    """A base that a checkpoint descends from, the evidence in words, and its weights' states."""

    base: Base
    source: str
    evidence: str
    weights: tuple[PublishedState, ...]


@cache
def load_registry() -> Registry:
    """Return the registry that ships with weightguard."""
    data = resources.files("weightguard.superweights").joinpath(REGISTRY).read_bytes()
    return msgspec.json.decode(data, type=Registry)


def find_lineages(
    registry: Registry,
    projections: Sequence[Projection],
    tensors: Iterable[TensorView],
    channels: Iterable[OutlierChannel],
    config: Mapping[str, Any] | None,
    names: Sequence[str],
) -> tuple[Lineage, ...]:
    """Return the bases that the checkpoint descends from.

    ``channels`` are its outlier channels, ``names`` what it calls itself. Reads a few elements
    and a sample of rows of each published weight's tensor.
    """
    vocabulary = _vocabulary(tensors)
    heavy = {(c.tensor, c.index) for c in channels if c.axis == "row"}
    lineages = []
    for base in registry.bases:
        if not _same_shapes(base, projections, vocabulary) or not _same_config(base, config):
            continue
        states = tuple(_states(base, projections))
        evidence = _evidence(base, states, projections, heavy, names)
        if evidence is not None:
            lineages.append(Lineage(base, registry.sources[base.source], evidence, states))
    return tuple(lineages)


def published_weights(
    lineage: Lineage, nominated: Mapping[tuple[str, tuple[int, ...]], SuperWeight]
) -> Iterable[SuperWeight]:
    """Yield the weights that are still the published ones, with scores where also nominated."""
    for state in lineage.weights:
        if not state.is_published:
            continue
        tensor = state.projection.tensor
        index = tensor.index(state.element)
        known = nominated.get((tensor.name, index))
        if known is not None:
            yield msgspec.structs.replace(known, status="published", source=lineage.source)
            continue
        form = FORMATS[tensor.dtype.scalar]
        yield SuperWeight(
            tensor.name, index, form.hexadecimal(state.bits), state.value, "published", {},
            source=lineage.source,
        )  # fmt: skip


def _same_shapes(base: Base, projections: Sequence[Projection], vocabulary: int | None) -> bool:
    plain = [p for p in projections if len(p.tensor.shape) == 2 and not p.transposed]
    return (
        len(plain) == len(projections) == base.layers
        and {p.layer for p in plain} == set(range(base.layers))
        and all((p.outputs, p.units) == (base.hidden, base.intermediate) for p in plain)
        and vocabulary is not None
        and base.vocabulary <= vocabulary <= base.vocabulary + SPARE_VOCABULARY
    )


_EMBEDDINGS = ("embed_tokens.weight", "token_embd.weight", "tok_embeddings.weight", "wte.weight")


def _vocabulary(tensors: Iterable[TensorView]) -> int | None:
    for tensor in tensors:
        if any(name.endswith(_EMBEDDINGS) for name in (tensor.name, *tensor.aliases)):
            return tensor.shape[0] if tensor.shape else None
    return None


def _same_config(base: Base, config: Mapping[str, Any] | None) -> bool:
    if config is None:
        return True
    return all(config.get(key, value) == value for key, value in base.config.items())


def _states(base: Base, projections: Sequence[Projection]) -> Iterable[PublishedState]:
    by_layer = {projection.layer: projection for projection in projections}
    for published in base.weights:
        projection = by_layer[published.layer]
        tensor = projection.tensor
        element = published.row * projection.units + published.column
        bits = exact_bits(tensor, element)
        value = float(FORMATS[tensor.dtype.scalar].decode(bits))
        ratio = column_ratio(projection, element, value)
        yield PublishedState(
            published, projection, element, bits, value, ratio, _state(published, value, ratio)
        )


def _state(published: PublishedWeight, value: float, ratio: float) -> State:
    if not math.isfinite(value):
        return "not-finite"
    if published.value is None:
        if ratio >= MIN_COLUMN_RATIO:
            return "alive"
        # what is below its column's rms is one weight of many
        return "shrunk" if ratio >= 1 else "lost"
    scale = value / published.value
    if abs(scale) < LOST_BELOW:
        return "lost"
    low, high = SCALE_RANGE
    if low <= scale <= high:
        return "alive"
    return "flipped" if scale < 0 else "shrunk" if scale < low else "grown"


def _evidence(
    base: Base,
    states: Sequence[PublishedState],
    projections: Sequence[Projection],
    heavy: set[tuple[str, int]],
    names: Sequence[str],
) -> str | None:
    """Return why the checkpoint counts as a descendant, or None."""
    alive = [s for s in states if s.state == "alive" and s.ratio >= MIN_COLUMN_RATIO]
    if alive:
        return f"{len(alive)} of {len(states)} published super weights are in place"
    hits = _heavy_projections(base, projections, heavy)
    if hits:
        return f"the published row is an outlier of {hits} of {len(projections)} output projections"
    claimed = next((n for n in names if any(piece in n.lower() for piece in base.names)), None)
    return None if claimed is None else f"the checkpoint calls itself {claimed[:100]!r}"


def _heavy_projections(
    base: Base, projections: Sequence[Projection], heavy: set[tuple[str, int]]
) -> int:
    """Return of how many output projections the published row is an outlier, 0 where too few.

    A super weight's row is heavy throughout the model, and in its attention as well: a few
    projections alone may be so by anything.
    """
    names = {p.tensor.name for p in projections}
    for row in sorted({published.row for published in base.weights}):
        hits = sum((name, row) in heavy for name in names)
        elsewhere = any(index == row and name not in names for name, index in heavy)
        if hits >= HEAVY_SHARE * len(projections) and elsewhere:
            return hits
    return 0
