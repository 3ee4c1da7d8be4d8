"""WG2xx: what the numbers of a tensor say without anything to compare them with."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from weightguard.catalogue import Severity
from weightguard.finding import Finding, finding
from weightguard.rules.absurd import find_absurd
from weightguard.rules.health import TensorHealth
from weightguard.scan.values import element_index, iterate_values
from weightguard.tensor import TensorView

MAX_LISTED = 16
SUBNORMAL_SHARE = {"F16": 0.5, "BF16": 0.01, "F32": 0.01, "F64": 0.01}
"""Shares of subnormal values above which a tensor is reported; small formats use them freely."""
SPARSE_SHARE = 0.25

# tables whose unused rows are zero in many sound models
_LOOKUP_TABLE = re.compile(r"embed|embd|wte|wpe|lm_head|vocab|token|position", re.IGNORECASE)


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
        yield from _dead_rows(health)
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
        yield _counted("WG201", tensor, statistics.nan, "NaN", first_nan, None)
    if statistics.inf:
        # attention masks hold nothing but 0 and -Inf, their scalar constants only -Inf: sound
        plain = statistics.finite == statistics.zero and not statistics.nan
        mask = plain and (statistics.finite > 0 or statistics.total == 1)
        severity = Severity.INFO if mask else None
        yield _counted("WG202", tensor, statistics.inf, "infinite", first_inf, severity)


def _counted(
    code: str,
    tensor: TensorView,
    count: int,
    word: str,
    elements: list[tuple[int, ...]],
    severity: Severity | None,
) -> Finding:
    return finding(
        code,
        f"{count} of {tensor.elements} values {'is' if count == 1 else 'are'} {word}",
        severity=severity,
        file=tensor.shard,
        tensor=tensor.name,
        element=elements[0] if elements else None,
        evidence={"count": count, "elements": [list(index) for index in elements]},
    )


def _first_non_finite(
    tensor: TensorView,
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    nans: list[tuple[int, ...]] = []
    infs: list[tuple[int, ...]] = []
    for first, values in iterate_values(tensor):
        for found, places in ((nans, np.isnan(values)), (infs, np.isinf(values))):
            room = MAX_LISTED - len(found)
            scalars = np.flatnonzero(places)[:room].tolist()
            found += [element_index(tensor, first + scalar) for scalar in scalars]
    return nans, infs


def _constant(health: TensorHealth) -> Iterator[Finding]:
    statistics, tensor = health.statistics, health.tensor
    if statistics.finite != statistics.total:
        return
    if statistics.zero == statistics.total:
        yield finding("WG203", f"all {tensor.elements} values are zero",
                      file=tensor.shard, tensor=tensor.name)  # fmt: skip
    elif statistics.min_bits == statistics.max_bits:
        yield finding("WG204", f"all {tensor.elements} values are {statistics.mean:.7g}",
                      file=tensor.shard, tensor=tensor.name)  # fmt: skip


def _dead_rows(health: TensorHealth) -> Iterator[Finding]:
    tensor = health.tensor
    if not 0 < health.dead_rows < health.rows:
        return
    lookup = _LOOKUP_TABLE.search(tensor.name[:1000]) is not None
    # where live rows hold many zeros too (masks, pruned weights), a zero row is no surprise
    alive = health.rows - health.dead_rows
    live_zeros = health.statistics.zero - health.dead_rows * tensor.layout.row_scalars
    sparse = live_zeros > SPARSE_SHARE * alive * tensor.layout.row_scalars
    yield finding(
        "WG205",
        f"{health.dead_rows} of {health.rows} rows are zero, first row {health.first_dead_rows[0]}",
        severity=Severity.INFO if lookup or sparse else None,
        file=tensor.shard,
        tensor=tensor.name,
        row=health.first_dead_rows[0],
        evidence={"count": health.dead_rows, "rows": list(health.first_dead_rows)},
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
