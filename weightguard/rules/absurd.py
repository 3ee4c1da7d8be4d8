"""WG207: a few values orders of magnitude beyond everything else in their tensor.

Trained weights of one tensor fill neighbouring octaves (powers of two) without wide gaps, genuine
super weights included. A flipped high exponent bit, or bytes of something else read as floats,
put a handful of values many octaves above the rest. The rule looks for an empty stretch of at
least ``GAP_OCTAVES`` octaves with few values above it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from weightguard.finding import Finding, finding
from weightguard.rules.health import OCTAVE_ZERO, TensorHealth, octaves
from weightguard.scan.values import element_index, iterate_values
from weightguard.tensor import TensorView

GAP_OCTAVES = 6
"""Empty octaves that part absurd from ordinary: the least absurd value is over 64 times larger."""
MIN_VALUES = 64
MAX_SHARE = 0.001
MAX_FEW = 32
MAX_LISTED = 64
NECESSARY_PEAK = 28
MOST_ROWS_HIT = 16


def find_absurd(health: TensorHealth) -> Finding | None:
    """Return the finding for absurd values of a tensor, or None.

    Cheap statistics decide whether to look; only a suspicious tensor is read again.
    """
    if not _suspicious(health):
        return None
    gap = _gap(health.tensor)
    return None if gap is None else _describe(health.tensor, gap)


def _suspicious(health: TensorHealth) -> bool:
    """Return whether the cheap statistics leave room for a gap.

    With at most MAX_SHARE of n values above a gap and the rest below 1/64 of absmax,
    rms <= absmax * sqrt(MAX_SHARE + 1/4096), so absmax >= 28 rms is necessary. Rows then tell
    an outlier among many octaves from a gap, unless most rows are hit.
    """
    statistics = health.statistics
    if statistics.finite - statistics.zero < MIN_VALUES:
        return False
    if statistics.finite <= MAX_FEW / MAX_SHARE:
        return True
    if statistics.absmax < NECESSARY_PEAK * statistics.rms:
        return False
    typical = health.typical_row()
    return (
        typical is None
        or statistics.absmax >= 2.0**GAP_OCTAVES * typical
        or typical >= MOST_ROWS_HIT * statistics.rms
    )


@dataclass(frozen=True, slots=True)
class _Gap:
    """The gap: ``count`` values of at least ``above``, all others below ``below``."""

    above: float
    below: float
    count: int


def _gap(tensor: TensorView) -> _Gap | None:
    histogram = sum(
        (octaves(values) for _, values in iterate_values(tensor)),
        start=np.zeros(2 * OCTAVE_ZERO, np.int64),
    )
    occupied = np.flatnonzero(histogram)[::-1].tolist()
    total = int(histogram.sum())
    few = max(MAX_FEW, int(total * MAX_SHARE))
    count = 0
    for upper, lower in itertools.pairwise(occupied):
        count += int(histogram[upper])
        if count > few:
            return None
        if upper - lower > GAP_OCTAVES:
            return _Gap(2.0 ** (upper - OCTAVE_ZERO), 2.0 ** (lower + 1 - OCTAVE_ZERO), count)
    return None


def _describe(tensor: TensorView, gap: _Gap) -> Finding:
    places: list[int] = []
    values: list[float] = []
    for first, piece in iterate_values(tensor):
        found = np.flatnonzero(np.isfinite(piece) & (np.abs(piece) >= gap.above))
        found = found[: MAX_LISTED - len(places)]
        places += (first + found).tolist()
        values += piece[found].tolist()
    indices = [element_index(tensor, place) for place in places]
    index = "[" + ",".join(map(str, indices[0])) + "]"
    number = (
        f"the value {values[0]:.6g} at {index}"
        if gap.count == 1
        else f"{gap.count} values, the first {values[0]:.6g} at {index},"
    )
    return finding(
        "WG207",
        f"{number} where every other magnitude is below {gap.below:.3g}",
        file=tensor.shard,
        offset=_offset(tensor, places[0]),
        tensor=tensor.name,
        element=indices[0],
        evidence={
            "count": gap.count,
            "elements": [list(index) for index in indices],
            "values": values,
            "others_below": gap.below,
        },
    )


def _offset(tensor: TensorView, scalar: int) -> int | None:
    if tensor.offset is None:
        return None
    return tensor.offset + scalar // tensor.dtype.block_scalars * tensor.dtype.block_bytes
