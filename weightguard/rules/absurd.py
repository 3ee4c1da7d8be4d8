"""WG207: values that cannot be weights, orders of magnitude beyond everything else.

Trained weights of one tensor fill neighbouring octaves (powers of two) without wide gaps, and the
higher octave holds fewer of them, genuine super weights included. A flipped high exponent bit, or
bytes of something else read as floats, put values many octaves above the rest. Such values are
found in three ways:

- *gap*: a few values above at least ``GAP_OCTAVES`` empty octaves;
- *ceiling*: any value of at least ``CEILING``, whatever lies in between;
- *second mode*: scattered values, more of them than in the octaves that part them from the rest.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightguard.finding import Finding, finding
from weightguard.rules.health import OCTAVE_ZERO, TensorHealth, octaves
from weightguard.scan.formats import FORMATS
from weightguard.scan.values import element_index, iterate_values, scalar_offset
from weightguard.tensor import TensorView

GAP_OCTAVES = 6
"""Empty octaves that part absurd from ordinary: the least absurd value is over 64 times larger."""
MIN_VALUES = 64
MAX_SHARE = 0.001
MAX_FEW = 32
MAX_LISTED = 64
NECESSARY_PEAK = 28
MOST_ROWS_HIT = 16

CEILING_OCTAVE = 50
CEILING = 2.0**CEILING_OCTAVE
"""Weights and norms end near 1e3; variances of batch norm, counters, prices and time stamps in
milliseconds that models carry as buffers end near 1e12. A flip of the highest or the second
exponent bit of bfloat16 or binary32 takes an ordinary weight (2^-14 to 2^-1) to 2^50 and beyond."""

MASKED_SHARE = 1 / 8
"""Share of values above a gap from which they may be the filled part of a small mask."""

MODE_OCTAVES = 10
"""Octaves between the most frequent magnitude and a second mode: over 500 times larger. A channel
that a norm was folded into reaches 100."""
MIN_MODE = 16
"""Values in the fullest octave of a second mode; fewer may be chance."""
VALLEY_SHARE = 1 / 8
MAX_SCATTERED_SHARE = 0.01
MAX_LINE_SHARE = 1 / 8
"""Share of one row or column that scattered values hold at most; beyond it, the row or column
is large as a whole, as used rows of an embedding are beside decayed ones."""
MAX_LINES = 1 << 22
"""Rows and columns together that are counted; no published matrix has more."""


def find_absurd(health: TensorHealth) -> Finding | None:
    """Return the finding for absurd values of a tensor, or None.

    Cheap statistics decide whether to look; only a suspicious tensor is read again.
    """
    if not _suspicious(health):
        return None
    cut = _cut(health)
    return None if cut is None else _describe(health.tensor, cut)


def _suspicious(health: TensorHealth) -> bool:
    """Return whether the cheap statistics leave room for absurd values.

    With at most MAX_SHARE of n values above a gap and the rest below 1/64 of absmax,
    rms <= absmax * sqrt(MAX_SHARE + 1/4096), so absmax >= 28 rms is necessary. Rows then tell
    an outlier among many octaves from a gap, unless most rows are hit.
    """
    statistics = health.statistics
    if statistics.absmax >= CEILING:
        return True
    if statistics.finite - statistics.zero < MIN_VALUES:
        return False
    if statistics.finite <= MAX_FEW / MAX_SHARE:
        return True
    if statistics.absmax < NECESSARY_PEAK * statistics.rms:
        return False
    typical = health.typical_row
    return (
        typical is None
        or statistics.absmax >= 2.0**GAP_OCTAVES * typical
        or typical >= MOST_ROWS_HIT * statistics.rms
    )


@dataclass(frozen=True, slots=True)
class _Cut:
    """What parts absurd from ordinary: ``count`` values of at least ``above``, others below."""

    above: float
    below: float
    count: int
    words: str = ""


def _cut(health: TensorHealth) -> _Cut | None:
    tensor, statistics = health.tensor, health.statistics
    histogram = sum(
        (octaves(values) for _, values in iterate_values(tensor)),
        start=np.zeros(2 * OCTAVE_ZERO, np.int64),
    )
    enough = statistics.finite - statistics.zero >= MIN_VALUES
    gap = _gap(histogram) if enough else None
    if gap is not None and gap.count > MASKED_SHARE * statistics.finite:
        gap = None if _is_mask(tensor, gap.above) else gap
    if gap is not None and gap.below <= CEILING:
        return gap
    if statistics.absmax >= CEILING and not _is_mask(tensor, CEILING):
        return _beyond_ceiling(histogram)
    return gap or (_second_mode(tensor, histogram) if enough else None)


def _gap(histogram: NDArray[np.int64]) -> _Cut | None:
    occupied = np.flatnonzero(histogram)[::-1].tolist()
    total = int(histogram.sum())
    few = max(MAX_FEW, int(total * MAX_SHARE))
    count = 0
    for upper, lower in itertools.pairwise(occupied):
        count += int(histogram[upper])
        if count > few:
            return None
        if upper - lower > GAP_OCTAVES:
            return _Cut(_octave(upper), _octave(lower + 1), count)
    return None


def _beyond_ceiling(histogram: NDArray[np.int64]) -> _Cut:
    first = OCTAVE_ZERO + CEILING_OCTAVE
    below = np.flatnonzero(histogram[:first])
    others = _octave(int(below[-1]) + 1) if len(below) else 0.0
    words = "; no sound weight comes near"
    return _Cut(CEILING, others, int(histogram[first:].sum()), words)


def _is_mask(tensor: TensorView, bound: float) -> bool:
    """Return whether the values from ``bound`` on are what masks are filled with.

    They are one value, and it is the least number of a format or a power of ten, or the tensor
    is called a mask, or holds at most one other value.
    """
    large: set[float] = set()
    others: set[float] = set()
    for _, values in iterate_values(tensor):
        finite = values[np.isfinite(values)]
        beyond = np.abs(finite) >= bound
        large.update(np.unique(finite[beyond])[:2].tolist())
        others.update(np.unique(finite[~beyond])[:2].tolist())
        if len(large) > 1:
            return False
    (value,) = large
    named = "mask" in tensor.name[:1000].lower()
    return named or len(others) <= 1 or _is_fill(value, tensor.dtype.scalar)


def _is_fill(value: float, scalar: str) -> bool:
    magnitude = abs(value)
    for form in (FORMATS[name] for name in ("BF16", "F32", "F64")):
        if magnitude == form.decode(form.first_not_finite - 1):
            return True
    error = 2.0 ** -(FORMATS[scalar].mantissa + 1)
    ten = 10.0 ** round(float(np.log10(magnitude)))
    return bool(abs(magnitude / ten - 1) <= error)


def _second_mode(tensor: TensorView, histogram: NDArray[np.int64]) -> _Cut | None:
    """Return the cut below scattered values that are a mode of their own, or None."""
    total = int(histogram.sum())
    above = np.cumsum(histogram[::-1])[::-1]
    lowest = int(np.argmax(histogram)) + 1
    best: tuple[int, int] | None = None
    for first in range(lowest + 1, int(np.flatnonzero(histogram)[-1]) + 1):
        peak = first + int(np.argmax(histogram[first:]))
        valley = int(histogram[first - 1])
        if (
            above[first] <= MAX_SCATTERED_SHARE * total
            and histogram[peak] >= MIN_MODE
            and valley <= VALLEY_SHARE * histogram[peak]
            and peak - (lowest - 1) >= MODE_OCTAVES
            and (best is None or valley < best[0])
        ):
            best = valley, first
    if best is None or not _scattered(tensor, _octave(best[1])):
        return None
    words = f", scattered, and nearly all are below {_octave(lowest + 1):.3g}"
    bound = _octave(best[1])
    return _Cut(bound, bound, int(above[best[1]]), words)


def _scattered(tensor: TensorView, bound: float) -> bool:
    """Return whether no row and no column holds a large share of the values from ``bound`` on."""
    layout = tensor.layout
    rows, columns = layout.rows, layout.row_scalars
    if min(rows, columns) * MAX_LINE_SHARE < 1 or rows + columns > MAX_LINES:
        return False
    by_row, by_column = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    for first, values in iterate_values(tensor):
        places = first + np.flatnonzero(np.isfinite(values) & (np.abs(values) >= bound))
        np.add.at(by_row, places // columns, 1)
        np.add.at(by_column, places % columns, 1)
    return bool(
        by_row.max() <= max(MAX_LINE_SHARE * columns, 1)
        and by_column.max() <= max(MAX_LINE_SHARE * rows, 1)
    )


def _octave(place: int) -> float:
    return float(2.0 ** (place - OCTAVE_ZERO))


def _describe(tensor: TensorView, cut: _Cut) -> Finding:
    places: list[int] = []
    values: list[float] = []
    for first, piece in iterate_values(tensor):
        found = np.flatnonzero(np.isfinite(piece) & (np.abs(piece) >= cut.above))
        found = found[: MAX_LISTED - len(places)]
        places += (first + found).tolist()
        values += piece[found].tolist()
    indices = [element_index(tensor, place) for place in places]
    index = "[" + ",".join(map(str, indices[0])) + "]"
    number = (
        f"the value {values[0]:.6g} at {index}"
        if cut.count == 1
        else f"{cut.count} values, the first {values[0]:.6g} at {index},"
    )
    return finding(
        "WG207",
        f"{number} where every other magnitude is below {cut.below:.3g}{cut.words}",
        file=tensor.shard,
        offset=scalar_offset(tensor, places[0]),
        tensor=tensor.name,
        element=indices[0],
        evidence={
            "count": cut.count,
            "elements": [list(index) for index in indices],
            "values": values,
            "others_below": cut.below,
        },
    )
