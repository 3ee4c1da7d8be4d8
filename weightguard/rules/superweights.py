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
from weightguard.scan.values import gather, scalar_offset
from weightguard.superweights.published import Lineage, PublishedState
from weightguard.tensor import TensorView

SCALE_BLOCK = 32
"""Weights that share a scale in GGML's formats, or a part of them that does."""

MAX_LEVELS = 1
"""Different values among an outlier's neighbours at or below which its scale has swallowed them."""

_RULE_OF_STATE = {
    "lost": "WG301",
    "not-finite": "WG301",
    "flipped": "WG302",
    "shrunk": "WG303",
    "grown": "WG303",
}

_GROWN_REMEDY = (
    "Compare the tensor with a trusted copy: no training makes a super weight grow so far."
)


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
                    offset=scalar_offset(tensor, tensor.element(weight.index)),
                    tensor=tensor.name,
                    element=weight.index,
                    evidence={"levels": levels},
                )


def check_salience(comparison: SalienceComparison) -> Iterator[Finding]:
    """Yield a finding for each recorded super weight and outlier channel that changed.

    A channel whose greatest magnitude moved because a super weight did is told of once.
    """
    weights = comparison.super_weights()
    for change in weights:
        yield _super_weight(change)
    explained = {place for change in weights for place in _maxima(change)}
    for moved in comparison.channels():
        channel = moved.recorded
        places = {
            (moved.tensor.name, channel.axis, channel.index, bits)
            for bits in (int(channel.bits, 16), moved.bits)
        }
        if not places & explained:
            yield _channel(moved)


def _maxima(change: SuperWeightChange) -> Iterator[tuple[str, str, int, int]]:
    """Yield (tensor, axis, channel, magnitude bits) that a super weight was or is."""
    tensor, index = change.tensor, change.recorded.index
    layout, element = tensor.layout, tensor.element(index)
    for bits in (int(change.recorded.bits, 16), change.bits):
        magnitude = bits & ~FORMATS[tensor.dtype.scalar].sign_bit
        yield tensor.name, "row", element // layout.row_elements, magnitude
        yield tensor.name, "column", element % layout.row_elements, magnitude


def _published(lineage: Lineage, state: PublishedState) -> Finding:
    tensor, element = state.projection.tensor, state.element
    return finding(
        _RULE_OF_STATE[state.state],
        f"the published super weight of {lineage.base.model} {_what_it_is(state)}",
        remedy=_GROWN_REMEDY if state.state == "grown" else None,
        severity=Severity.WARNING if state.state == "grown" else None,
        file=tensor.shard,
        offset=scalar_offset(tensor, element),
        tensor=tensor.name,
        element=tensor.index(element),
        evidence={
            "base": lineage.base.model,
            "source": lineage.source,
            "lineage": lineage.evidence,
            "bits": FORMATS[tensor.dtype.scalar].hexadecimal(state.bits),
        },
    )


def _what_it_is(state: PublishedState) -> str:
    """Return what became of a published weight, in words that follow its name."""
    published, value = state.published.value, state.value
    known = "" if published is None else f", published as {published:.6g}"
    if value == 0:
        return f"is zero{known}"
    if state.state == "lost":
        return f"is as good as zero: {value:.6g}{known or _beside_column(state)}"
    if state.state == "not-finite":
        return f"is not finite: {value:.6g}{known}"
    if published is None:
        return f"is no outlier any more: {value:.6g}{_beside_column(state)}"
    if state.state == "flipped":
        return f"has the wrong sign: {value:.6g}{known}"
    return f"is {value / published:.3g} times its published value: {value:.6g}{known}"


def _beside_column(state: PublishedState) -> str:
    return f", {state.ratio:.2g} times its column's rms"


def _super_weight(change: SuperWeightChange) -> Finding:
    weight, tensor = change.recorded, change.tensor
    new = decoded(tensor, change.bits)
    return finding(
        "WG305",
        f"a {weight.status} super weight changed from {weight.value:.6g} to {new:.6g}",
        severity=Severity.ERROR if weight.status == "nominated" else None,
        file=tensor.shard,
        offset=scalar_offset(tensor, tensor.element(weight.index)),
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
        offset=_row_offset(tensor, channel.index) if channel.axis == "row" else None,
        row=channel.index if channel.axis == "row" else None,
        evidence={
            "axis": channel.axis,
            "index": channel.index,
            "old_bits": channel.bits,
            "new_bits": FORMATS[tensor.dtype.scalar].hexadecimal(change.bits),
        },
    )


def _row_offset(tensor: TensorView, row: int) -> int | None:
    return None if tensor.offset is None else tensor.offset + row * tensor.layout.row_bytes


def _neighbour_levels(tensor: TensorView, index: tuple[int, ...]) -> int:
    element = tensor.element(index)
    start = element - element % SCALE_BLOCK
    others = [n for n in range(start, start + SCALE_BLOCK) if n != element]
    return len(np.unique(gather(tensor, others)))
