"""The survey of a checkpoint: what stands out in its weights.

Observers gather row and column maxima during the streaming pass; afterwards a second look reads a
sample of rows and single elements of the MLP output projections, a few percent of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightguard.checkpoint import Checkpoint
from weightguard.outliers import (
    Extremes,
    ExtremesObserver,
    has_channels,
    heaviest,
    outlier_channels,
    recurring_channels,
)
from weightguard.salient import OutlierChannel, Salience, SuperWeight
from weightguard.scan.fingerprint import TensorObserver
from weightguard.scan.stream import default_threads
from weightguard.superweights.nominate import find_candidates, nominate
from weightguard.superweights.projections import Projection, find_projections
from weightguard.superweights.published import (
    Lineage,
    Registry,
    find_lineages,
    load_registry,
    published_weights,
)
from weightguard.tensor import TensorView

MAX_KEPT_CHANNELS = 1 << 25
"""Row and column maxima kept for the second look; projections beyond them are not nominated from.
Every published dense model stays far below."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """What a survey found: what stands out, and the published bases that it was checked against."""

    salience: Salience
    lineages: tuple[Lineage, ...]


class Survey:
    """Observes the pass over one checkpoint's tensors, then says what stands out."""

    def __init__(self, tensors: Sequence[TensorView], registry: Registry | None = None):
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._registry = load_registry() if registry is None else registry
        self._projections = find_projections(tensors)
        self._kept = _kept(self._projections)
        self._extremes: dict[str, Extremes] = {}
        self._channels: dict[str, list[OutlierChannel]] = {}

    def observers(self, tensor: TensorView) -> Sequence[TensorObserver]:
        """Return who is to see ``tensor`` during the pass."""
        return [ExtremesObserver(tensor, self._take)] if has_channels(tensor) else []

    def conclude(
        self,
        config: Mapping[str, Any] | None = None,
        names: Sequence[str] = (),
        threads: int | None = None,
    ) -> Outstanding:
        """Return what stands out; call it once, after the pass.

        ``config`` is the parsed config.json, ``names`` what the checkpoint calls itself; both
        only serve to recognise a published base. Raises CheckpointError when a file ends early.
        """
        found = [c for name in sorted(self._channels) for c in self._channels[name]]
        candidates = find_candidates(
            self._projections, self._extremes, threads or default_threads()
        )
        nominated = nominate(candidates)
        lineages = find_lineages(
            self._registry, self._projections, self._tensors.values(), found, config, names
        )
        salience = Salience(
            _with_published(nominated, lineages),
            heaviest(found),
            recurring_channels(found, self._tensors, self._projections),
        )
        return Outstanding(salience, lineages)

    def _take(self, tensor: TensorView, extremes: Extremes) -> None:
        channels = outlier_channels(tensor, extremes)
        if channels:
            self._channels[tensor.name] = channels
        if tensor.name in self._kept:
            self._extremes[tensor.name] = extremes


def own_names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return what a checkpoint calls itself, in config.json or in GGUF metadata."""
    names = [checkpoint.metadata.get(f"general.{key}") for key in ("name", "basename")]
    if checkpoint.config is not None:
        names.append(checkpoint.config.get("_name_or_path"))
    return tuple(name for name in names if isinstance(name, str))


def _kept(projections: Iterable[Projection]) -> frozenset[str]:
    """Return the tensors whose maxima the second look needs, in order, up to the limit."""
    kept: set[str] = set()
    room = MAX_KEPT_CHANNELS
    for projection in projections:
        parts = [projection.tensor]
        parts += [p.tensor for p in (projection.up, projection.gate) if p is not None]
        names = {part.name for part in parts}
        room -= sum(p.layout.rows + p.layout.row_scalars for p in parts)
        if room < 0:
            break
        kept |= names
    return frozenset(kept)


def _with_published(
    nominated: Sequence[SuperWeight], lineages: Iterable[Lineage]
) -> tuple[SuperWeight, ...]:
    by_place = {(weight.tensor, weight.index): weight for weight in nominated}
    for lineage in lineages:
        for weight in published_weights(lineage, by_place):
            by_place[weight.tensor, weight.index] = weight
    return tuple(by_place.values())
