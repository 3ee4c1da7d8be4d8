"""WG205: rows of a weight matrix that hold nothing but zeros.

Rows of the layout are judged from their maxima. Where the layout folds several rows of a narrow
matrix into one (fewer than 64 columns, or a convolution of fewer than 64 weights an output), the
tensor is read a second time, provided that it holds enough zeros for a dead row.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from weightguard.catalogue import Severity
from weightguard.finding import Finding, finding
from weightguard.rules.health import MAX_LISTED_ROWS, TensorHealth
from weightguard.rules.names import is_optimizer_state
from weightguard.scan.values import iterate_values, scalar_offset
from weightguard.tensor import TensorView

SPARSE_SHARE = 0.25
BY_CHANCE = 0.01
"""Zero rows that scattered zeros may be expected to make by themselves."""
MIN_STACKED_COLUMNS = 8
"""Columns from which the last dimension of a stack counts as a row, and not as a kernel's width."""

# tables whose unused rows are zero in many sound models
_LOOKUP_TABLE = re.compile(r"embed|embd|wte|wpe|lm_head|vocab|token|position", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Rows:
    """How many rows of how many scalars there are, and which of them are dead."""

    rows: int
    scalars: int
    dead: int
    first_dead: tuple[int, ...]
    folded: bool


def find_dead_rows(health: TensorHealth) -> Finding | None:
    """Return the finding for dead rows of a weight matrix, or None."""
    folded = _folded_row(health.tensor)
    if folded and health.statistics.zero >= folded:
        found = _look(health.tensor, folded)
    else:
        layout = health.tensor.layout
        found = _Rows(
            layout.rows, layout.row_scalars, health.dead_rows, health.first_dead_rows, False
        )
    return _describe(health, found) if 0 < found.dead < found.rows else None


def _folded_row(tensor: TensorView) -> int:
    """Return the scalars of a row of the matrix where the layout folds several, else 0."""
    shape, dtype = tensor.shape, tensor.dtype
    if dtype.block_scalars != dtype.block_elements:
        return 0
    stacked = len(shape) == 3 and shape[-1] >= MIN_STACKED_COLUMNS
    row = shape[-1] if len(shape) == 2 or stacked else math.prod(shape[1:])
    return row if row < tensor.layout.row_elements else 0


def _look(tensor: TensorView, scalars: int) -> _Rows:
    rows = tensor.elements // scalars
    zeros = np.zeros(rows, np.int64)
    for first, values in iterate_values(tensor):
        places = (first + np.flatnonzero(values == 0)) // scalars
        if len(places):
            counts = np.bincount(places - places[0])
            zeros[places[0] : places[0] + len(counts)] += counts
    dead = np.flatnonzero(zeros == scalars)
    return _Rows(rows, scalars, len(dead), tuple(dead[:MAX_LISTED_ROWS].tolist()), True)


def _describe(health: TensorHealth, found: _Rows) -> Finding:
    tensor, first = health.tensor, found.first_dead[0]
    verb = "is" if found.dead == 1 else "are"
    start = first * found.scalars
    return finding(
        "WG205",
        f"{found.dead} of {found.rows} rows {verb} zero, first row {first}",
        severity=Severity.INFO if _no_surprise(health, found) else None,
        file=tensor.shard,
        offset=scalar_offset(tensor, start),
        tensor=tensor.name,
        # a row of the layout is what a location's row means
        row=None if found.folded else first,
        element=tensor.index(start) if found.folded else None,
        evidence={"count": found.dead, "rows": list(found.first_dead)},
    )


def _no_surprise(health: TensorHealth, found: _Rows) -> bool:
    """Return whether zero rows are usual here.

    They are in lookup tables and in what optimizers keep of rows without a gradient; and where
    live rows hold many zeros too, as in masks and pruned weights.
    """
    name = health.tensor.name[:1000]
    if _LOOKUP_TABLE.search(name) or is_optimizer_state(name):
        return True
    alive = found.rows - found.dead
    live_zeros = health.statistics.zero - found.dead * found.scalars
    share = live_zeros / (alive * found.scalars)
    return share > SPARSE_SHARE or found.rows * share**found.scalars > BY_CHANCE
