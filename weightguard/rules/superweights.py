"""WG3xx: super weights and outlier channels, with a published base or a manifest to compare to.

Nothing is found in a model that only nominates: an outlier is no deviation. A published weight is
judged only where there is evidence that the checkpoint descends from its base, so the rules are
silent on models that merely share its shapes. On SmolLM2-135M-Instruct and its conversions: no
finding above info.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from weightguard.catalogue import Severity
from weightguard.finding import Finding, finding
from weightguard.salience_changes import (
    ChannelChange,
    SalienceComparison,
    SuperWeightChange,
    decoded,
)
from weightguard.salient import SuperWeight
from weightguard.scan.formats import FORMATS
from weightguard.scan.values import gather
from weightguard.superweights.published import Lineage, PublishedState
from weightguard.tensor import TensorView

SCALE_BLOCK = 32
"""Weights that share a scale in GGML's formats, or a part of them that does."""

MAX_LEVELS = 1
"""Different values among an outlier's neighbours at or below which its scale has swallowed them."""

_RULE_OF_STATE = {
    "zero": ("WG301", "is zero"),
    "not-finite": ("WG301", "is not finite"),
    "flipped": ("WG302", "has the wrong sign"),
    "scaled": ("WG303", "is not what it was"),
}


def check_lineages(lineages: Iterable[Lineage]) -> Iterator[Finding]:
    """Yield a finding for each published super weight that is not as it should be."""
    for lineage in lineages:
        for state in lineage.weights:
            if state.state != "alive":
                yield _published(lineage, state)


def check_scales(
    weights: Iterable[SuperWeight], tensors: dict[str, TensorView]
) -> Iterator[Finding]:
    """Yield a finding for each super weight in a quantised block that kept nothing else."""
    for weight in weights:
        tensor = tensors[weight.tensor]
        if tensor.dtype.is_quantised:
            levels = _neighbour_levels(tensor, weight.index)
            if levels <= MAX_LEVELS:
                yield finding(
                    "WG304",
                    f"the {SCALE_BLOCK - 1} neighbours of {weight.value:.6g} share one value",
                    file=tensor.shard,
                    tensor=tensor.name,
                    element=weight.index,
                    evidence={"levels": levels},
                )


def check_salience(comparison: SalienceComparison) -> Iterator[Finding]:
    """Yield a finding for each recorded super weight and outlier channel that changed."""
    for change in comparison.super_weights():
        yield _super_weight(change)
    for moved in comparison.channels():
        yield _channel(moved)


def _published(lineage: Lineage, state: PublishedState) -> Finding:
    code, words = _RULE_OF_STATE[state.state]
    tensor, published = state.projection.tensor, state.published
    now = f": {state.value:.6g}" if state.value else ""
    if published.value is not None:
        known = f", published as {published.value:.6g}"
    else:
        known = f", {state.ratio:.2g} times its column's rms" if state.ratio else ""
    return finding(
        code,
        f"the published super weight of {lineage.base.model} {words}{now}{known}",
        file=tensor.shard,
        tensor=tensor.name,
        element=tensor.index(state.element),
        evidence={
            "base": lineage.base.model,
            "source": lineage.source,
            "lineage": lineage.evidence,
            "bits": FORMATS[tensor.dtype.scalar].hexadecimal(state.bits),
        },
    )


def _super_weight(change: SuperWeightChange) -> Finding:
    weight, tensor = change.recorded, change.tensor
    new = decoded(tensor, change.bits)
    return finding(
        "WG305",
        f"a {weight.status} super weight changed from {weight.value:.6g} to {new:.6g}",
        severity=Severity.ERROR if weight.status == "nominated" else None,
        file=tensor.shard,
        tensor=tensor.name,
        element=weight.index,
        evidence={
            "status": weight.status,
            "old_bits": weight.bits,
            "new_bits": FORMATS[tensor.dtype.scalar].hexadecimal(change.bits),
        },
    )


def _channel(change: ChannelChange) -> Finding:
    channel, tensor = change.recorded, change.tensor
    new = decoded(tensor, change.bits)
    return finding(
        "WG306",
        f"the greatest magnitude of {channel.axis} {channel.index} went "
        f"from {channel.value:.6g} to {new:.6g}",
        file=tensor.shard,
        tensor=tensor.name,
        row=channel.index if channel.axis == "row" else None,
        evidence={
            "axis": channel.axis,
            "index": channel.index,
            "old_bits": channel.bits,
            "new_bits": FORMATS[tensor.dtype.scalar].hexadecimal(change.bits),
        },
    )


def _neighbour_levels(tensor: TensorView, index: tuple[int, ...]) -> int:
    element = tensor.element(index)
    start = element - element % SCALE_BLOCK
    others = [n for n in range(start, start + SCALE_BLOCK) if n != element]
    return len(np.unique(gather(tensor, others)))
