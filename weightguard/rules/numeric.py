"""WG2xx: what the numbers of a tensor say without anything to compare them with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from weightguard.catalogue import Severity
from weightguard.finding import Finding, finding
from weightguard.rules.absurd import find_absurd
from weightguard.rules.dead import find_dead_rows
from weightguard.rules.health import TensorHealth
from weightguard.rules.names import is_adapter_output, is_optimizer_state
from weightguard.scan.values import element_index, iterate_values, scalar_offset
from weightguard.tensor import TensorView

MAX_LISTED = 16
SUBNORMAL_SHARE = {"F16": 0.5, "BF16": 0.01, "F32": 0.01, "F64": 0.01}
"""Shares of subnormal values above which a tensor is reported; small formats use them freely."""

_MASK_REMEDY = "Nothing to do where the tensor is a mask or its constant; both are filled so."
_UNTRAINED_REMEDY = (
    "Nothing to do before training, where this factor starts at zero; after it, restore the tensor."
)
_NO_GRADIENT_REMEDY = "Nothing to do: an optimizer keeps zeros for what had no gradient."


def check_numbers(health: TensorHealth) -> Iterator[Finding]:
    """Yield the numeric findings of one tensor; reads it a second time only where one is due."""
    if health.tensor.dtype.is_opaque:
        yield finding(
            "WG209",
            f"statistics of {health.tensor.dtype.name} are taken on its raw blocks",
            tensor=health.tensor.name,
            file=health.tensor.shard,
        )
    if not health.has_float_values:
        return
    yield from _non_finite(health)
    if health.is_weight_matrix:
        yield from _constant(health)
        dead = find_dead_rows(health)
        if dead is not None:
            yield dead
    yield from _subnormal(health)
    absurd = find_absurd(health)
    if absurd is not None:
        yield absurd


def _non_finite(health: TensorHealth) -> Iterator[Finding]:
    statistics, tensor = health.statistics, health.tensor
    if not statistics.nan + statistics.inf:
        return
    first_nan, first_inf = _first_non_finite(tensor)
    if statistics.nan:
        yield _counted("WG201", tensor, statistics.nan, "NaN", first_nan)
    if statistics.inf:
        # attention masks hold nothing but 0 and -Inf, their scalar constants only -Inf: sound
        plain = statistics.finite == statistics.zero and not statistics.nan
        mask = plain and (statistics.finite > 0 or statistics.total == 1)
        yield _counted("WG202", tensor, statistics.inf, "infinite", first_inf, mask=mask)


def _counted(
    code: str,
    tensor: TensorView,
    count: int,
    word: str,
    scalars: list[int],
    *,
    mask: bool = False,
) -> Finding:
    elements = [element_index(tensor, scalar) for scalar in scalars]
    return finding(
        code,
        f"{count} of {tensor.elements} values {'is' if count == 1 else 'are'} {word}",
        severity=Severity.INFO if mask else None,
        remedy=_MASK_REMEDY if mask else None,
        file=tensor.shard,
        offset=scalar_offset(tensor, scalars[0]) if scalars else None,
        tensor=tensor.name,
        element=elements[0] if elements else None,
        evidence={"count": count, "elements": [list(index) for index in elements]},
    )


def _first_non_finite(tensor: TensorView) -> tuple[list[int], list[int]]:
    """Return the numbers of the first scalars that are NaN, and of those that are infinite."""
    nans: list[int] = []
    infs: list[int] = []
    for first, values in iterate_values(tensor):
        for found, places in ((nans, np.isnan(values)), (infs, np.isinf(values))):
            room = MAX_LISTED - len(found)
            found.extend((first + np.flatnonzero(places)[:room]).tolist())
    return nans, infs


def _constant(health: TensorHealth) -> Iterator[Finding]:
    statistics, tensor = health.statistics, health.tensor
    if statistics.finite != statistics.total:
        return
    if statistics.zero == statistics.total:
        yield _all_zero(tensor)
    elif statistics.min_bits == statistics.max_bits:
        yield finding("WG204", f"all {tensor.elements} values are {statistics.mean:.7g}",
                      file=tensor.shard, offset=tensor.offset, tensor=tensor.name)  # fmt: skip


def _all_zero(tensor: TensorView) -> Finding:
    severity, remedy = None, None
    if is_optimizer_state(tensor.name):
        severity, remedy = Severity.INFO, _NO_GRADIENT_REMEDY
    elif is_adapter_output(tensor.name):
        severity, remedy = Severity.WARNING, _UNTRAINED_REMEDY
    return finding(
        "WG203",
        f"all {tensor.elements} values are zero",
        severity=severity,
        remedy=remedy,
        file=tensor.shard,
        offset=tensor.offset,
        tensor=tensor.name,
    )


def _subnormal(health: TensorHealth) -> Iterator[Finding]:
    statistics, tensor = health.statistics, health.tensor
    limit = SUBNORMAL_SHARE.get(statistics.scalar)
    if limit is None or tensor.dtype.is_quantised or statistics.finite < 64:
        return
    share = statistics.subnormal / statistics.finite
    if share > limit:
        yield finding(
            "WG206",
            f"{share:.1%} of the values are subnormal {statistics.scalar}",
            file=tensor.shard,
            tensor=tensor.name,
            evidence={"share": share, "limit": limit},
        )
