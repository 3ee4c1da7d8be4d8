"""Nominating super weights from the weights alone; only an ablation confirms one.

Two scores (docs/evidence/superweights.md has their ranks on a real model):

- *column ratio*: |w| over the rms of its hidden unit's other outgoing weights;
- *path gain*: |w| times |up| |gate| |cos(up, gate)|, the norms and the alignment of the rows
  that produce the hidden unit, with the layer norm's weight folded in. That is |w| times the
  absolute dot product of the two rows; in an MLP without a gate, |w| times |up|.

The row of a super weight is itself heavy, so |w| over its row's rms nominates nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightguard.outliers import Extremes
from weightguard.salient import Score, ScoreName, SuperWeight, significant
from weightguard.scan.formats import FORMATS
from weightguard.scan.values import exact_bits, gather, read_rows
from weightguard.superweights.projections import Producer, Projection

TOP = 8
"""Weights that each score nominates."""

MIN_COLUMN_RATIO = 8.0
"""What is not even an outlier of its column is no candidate, whatever its other score."""

CANDIDATE_UNITS = 16
"""Hidden units of a projection that are looked at for each score."""

SAMPLED_ROWS = 256
"""Rows that column rms is estimated from, evenly spaced; all of them where there are few more."""
SAMPLE_ALL_BELOW = 1024

MAX_ROWS_LOOKED_AT = 256
"""A weight that more rows than these exceed is no outlier, and is not looked for."""

GREATEST_SQUARE = np.float32(1e38)
"""Greater squares count as this one, so that sums stay finite."""

COMPANION_SHARE = 0.5
"""Weights of a candidate's unit of at least this share of it are candidates too."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A weight with its scores; ``element`` counts in C order, ``path_gain`` may be unknown."""

    projection: Projection
    element: int
    value: float
    column_ratio: float
    path_gain: float | None

    @property
    def place(self) -> tuple[str, int]:
        """What tells this weight from every other, and orders equals."""
        return self.projection.tensor.name, self.element


def find_candidates(
    projections: Iterable[Projection], extremes: Mapping[str, Extremes], threads: int
) -> list[Candidate]:
    """Return the candidates of all projections whose maxima are in ``extremes``.

    Reads a sample of rows, single rows and elements. Raises CheckpointError when a file ends
    early.
    """
    known = [p for p in projections if p.tensor.name in extremes]
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda p: list(_candidates(p, extremes)), known)
        return [candidate for candidates in found for candidate in candidates]


def column_ratio(projection: Projection, element: int, value: float) -> float:
    """Return |value| over the rms of its hidden unit's other weights; 0 where that is unknown."""
    if projection.transposed or not np.isfinite(value):
        return 0.0
    rms = float(_column_rms(projection)[element % projection.units])
    return abs(value) / rms if rms > 0 else 0.0


def nominate(candidates: Sequence[Candidate]) -> tuple[SuperWeight, ...]:
    """Return the ``TOP`` candidates of each score, by their better rank."""
    ranked: dict[ScoreName, list[Candidate]] = {
        "column_ratio": sorted(candidates, key=lambda c: (-c.column_ratio, c.place)),
        "path_gain": sorted(
            (c for c in candidates if c.path_gain is not None),
            key=lambda c: (-(c.path_gain or 0), c.place),
        ),
    }
    ranks = {
        name: {c.place: rank for rank, c in enumerate(order, 1)} for name, order in ranked.items()
    }
    chosen = {c.place: c for order in ranked.values() for c in order[:TOP]}

    def best(candidate: Candidate) -> tuple[int, int, tuple[str, int]]:
        places = [r[candidate.place] for r in ranks.values() if candidate.place in r]
        return min(places), sum(places), candidate.place

    return tuple(_nominated(c, ranks) for c in sorted(chosen.values(), key=best))


def _nominated(
    candidate: Candidate, ranks: Mapping[ScoreName, Mapping[tuple[str, int], int]]
) -> SuperWeight:
    scores: dict[ScoreName, Score] = {}
    values: dict[ScoreName, float | None] = {
        "column_ratio": candidate.column_ratio,
        "path_gain": candidate.path_gain,
    }
    for name, value in values.items():
        if value is not None:
            scores[name] = Score(significant(value), ranks[name][candidate.place])
    heaviness = _row_heaviness(candidate)
    tensor = candidate.projection.tensor
    form = FORMATS[tensor.dtype.scalar]
    bits = exact_bits(tensor, candidate.element)
    return SuperWeight(
        tensor.name,
        tensor.index(candidate.element),
        form.hexadecimal(bits),
        float(form.decode(bits)),
        "nominated",
        scores,
        None if heaviness is None else significant(heaviness),
    )


def _candidates(projection: Projection, extremes: Mapping[str, Extremes]) -> Iterator[Candidate]:
    tensor, found = projection.tensor, extremes[projection.tensor.name]
    if found.columns is None or not tensor.elements:
        return
    form = FORMATS[tensor.dtype.scalar]
    rows, columns = form.decode_magnitudes(found.rows), form.decode_magnitudes(found.columns)
    if projection.transposed:
        yield from _transposed_candidates(projection, rows)
        return
    rms = _column_rms(projection)
    ratios = _over(columns, rms)
    eligible = ratios >= MIN_COLUMN_RATIO
    bounds = _gain_bounds(projection, extremes)
    units = set(_top(ratios, eligible))
    if bounds is not None:
        units.update(_top(columns * bounds, eligible))
    elements = np.array(
        list(_outliers_of_units(projection, sorted(units), rows, columns)), np.int64
    )
    values = gather(tensor, elements).astype(np.float64)
    magnitudes, unit = np.abs(values), elements % projection.units
    kept = (magnitudes >= COMPANION_SHARE * columns[unit]) & (
        magnitudes >= MIN_COLUMN_RATIO * rms[unit]
    )
    elements, values = elements[kept], values[kept]
    gains = _path_gains(projection, elements)
    for place, element in enumerate(elements.tolist()):
        magnitude = abs(float(values[place]))
        gain = None if gains is None else magnitude * float(gains[place])
        yield Candidate(
            projection, element, float(values[place]),
            magnitude / float(rms[element % projection.units]),
            gain if gain is not None and np.isfinite(gain) else None,
        )  # fmt: skip


def _outliers_of_units(
    projection: Projection, units: Iterable[int], rows: NDArray[np.float64],
    columns: NDArray[np.float64],
) -> Iterator[int]:  # fmt: skip
    """Yield the elements of each unit in whose rows something as large lies."""
    for unit in units:
        places = np.flatnonzero(rows >= COMPANION_SHARE * columns[unit])
        if len(places) > MAX_ROWS_LOOKED_AT:
            places = np.flatnonzero(rows >= columns[unit])
        if len(places) <= MAX_ROWS_LOOKED_AT:
            yield from (places * projection.units + unit).tolist()


def _sampled_rows(projection: Projection) -> list[int]:
    total = projection.tensor.layout.rows
    count = total if total <= SAMPLE_ALL_BELOW else SAMPLED_ROWS
    return [int(row) for row in np.linspace(0, total - 1, count)]


def _column_rms(projection: Projection) -> NDArray[np.float64]:
    """Return the rms of each column's sampled weights without the greatest, shape (units,)."""
    picked = _sampled_rows(projection)
    squares = _squares(projection, picked)
    others = squares.sum(0, dtype=np.float64) - squares.max(0)
    rms: NDArray[np.float64] = np.sqrt(np.maximum(others, 0) / max(len(picked) - 1, 1))
    return rms


def _squares(projection: Projection, rows: Sequence[int]) -> NDArray[np.float32]:
    values = read_rows(projection.tensor, rows)
    values[~np.isfinite(values)] = 0
    with np.errstate(over="ignore"):
        return np.minimum(np.square(values, out=values), GREATEST_SQUARE, out=values)


def _row_heaviness(candidate: Candidate) -> float | None:
    """Return the norm of the candidate's output row over the median norm of sampled rows."""
    projection = candidate.projection
    if projection.transposed:
        return None
    row = candidate.element // projection.units
    sums = _squares(projection, [row, *_sampled_rows(projection)]).sum(1, dtype=np.float64)
    median = float(np.median(sums[1:]))
    heaviness = float(np.sqrt(sums[0] / median)) if median > 0 else np.inf
    return heaviness if np.isfinite(heaviness) else None


def _transposed_candidates(
    projection: Projection, rows: NDArray[np.float64]
) -> Iterator[Candidate]:
    """Yield candidates where a unit's outgoing weights are a row, which is read whole."""
    for unit in _top(rows, rows > 0):
        values = read_rows(projection.tensor, [unit])[0].astype(np.float64)
        values[~np.isfinite(values)] = 0
        squares = np.square(values)
        rms = np.sqrt((squares.sum() - squares.max()) / max(len(values) - 1, 1))
        output = int(np.argmax(squares))
        magnitude = abs(float(values[output]))
        if rms > 0 and magnitude / rms >= MIN_COLUMN_RATIO:
            yield Candidate(
                projection, unit * projection.outputs + output, float(values[output]),
                float(magnitude / rms), None,
            )  # fmt: skip


def _over(magnitudes: NDArray[np.float64], rms: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(magnitudes, rms, out=np.zeros_like(magnitudes), where=rms > 0)


def _top(scores: NDArray[np.float64], eligible: NDArray[np.bool_]) -> list[int]:
    order = np.argsort(-np.where(eligible, scores, -1), kind="stable")[:CANDIDATE_UNITS]
    return [int(unit) for unit in order if eligible[unit]]


def _gain_bounds(
    projection: Projection, extremes: Mapping[str, Extremes]
) -> NDArray[np.float64] | None:
    """Return for each unit the product of its producers' greatest magnitudes, to preselect by."""
    if projection.up is None or len(projection.tensor.shape) != 2:
        return None
    product = np.ones(projection.units)
    for producer in filter(None, (projection.up, projection.gate)):
        found = extremes.get(producer.tensor.name)
        if found is None:
            return None
        form = FORMATS[producer.tensor.dtype.scalar]
        rows = found.rows[producer.first_row : producer.first_row + projection.units]
        product *= form.decode_magnitudes(rows)
    return product


def _path_gains(projection: Projection, elements: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Return for each element what its unit's producers contribute to the path gain."""
    if projection.up is None:
        return None
    paths, inverse = np.unique(
        elements // (projection.outputs * projection.units) * projection.units
        + elements % projection.units,
        return_inverse=True,
    )
    up = _produced(projection, projection.up, paths)
    if projection.gate is None:
        gains = np.sqrt(np.square(up).sum(1))
    else:
        gains = np.abs((up * _produced(projection, projection.gate, paths)).sum(1))
    return np.asarray(gains[inverse], np.float64)


def _produced(
    projection: Projection, producer: Producer, paths: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the rows that produce hidden units, the layer norm folded in; shape (n, outputs).

    ``paths`` number the units, expert by expert.
    """
    expert, unit = np.divmod(paths, projection.units)
    rows = producer.first_row + expert * producer.expert_rows + unit
    values = read_rows(producer.tensor, rows.tolist()).astype(np.float64)
    if projection.norm is None:
        return values
    scale = read_rows(projection.norm, [0])[0].astype(np.float64)
    # Gemma's norms multiply by one more than they store
    values *= scale + 1 if "pre_feedforward" in projection.norm.name else scale
    return values
