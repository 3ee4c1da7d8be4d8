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
from weightguard.scan.values import exact_bits, read_grid, read_rows
from weightguard.superweights.projections import Producer, Projection

TOP = 8
"""Weights that each score nominates."""

MIN_COLUMN_RATIO = 8.0
"""What is not even an outlier of its column is no candidate, whatever its other score."""

CANDIDATE_UNITS = 24
"""Hidden units of a projection that are looked at for each score: those of the greatest bounds."""

HEAVY_ROWS = 128
"""Output rows, the heaviest ones, in which a unit's greatest weights are looked for. A weight
that so many rows exceed is no outlier."""

SAMPLED_ROWS = 128
"""Rows that column rms is estimated from, evenly spaced; all of them where there are few more."""
SAMPLE_ALL_BELOW = 1024

NORM_ROWS = 64
"""Rows that the median row norm is estimated from."""

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
    unit = np.array([element % projection.units])
    values = read_grid(projection.tensor, _sampled_rows(projection), unit)
    rms = float(_column_rms(values.astype(np.float64))[0])
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
    units = _promising_units(projection, columns, extremes)
    heavy = np.sort(np.argsort(-rows, kind="stable")[:HEAVY_ROWS])
    sampled = _sampled_rows(projection)
    read = np.union1d(heavy, sampled)
    grid = read_grid(projection.tensor, read, units).astype(np.float64)
    values = grid[np.searchsorted(read, heavy)]
    rms = _column_rms(grid[np.searchsorted(read, sampled)])
    magnitudes = np.where(np.isfinite(values), np.abs(values), 0)
    enough = np.maximum(COMPANION_SHARE * columns[units], MIN_COLUMN_RATIO * rms)
    places = np.argwhere((magnitudes >= enough) & (rms > 0))
    if not len(places):
        return
    row, unit = heavy[places[:, 0]], units[places[:, 1]]
    gains = _path_gains(projection, row // projection.outputs * projection.units + unit)
    for number, (at, column) in enumerate(places.tolist()):
        gain = None if gains is None else magnitudes[at, column] * gains[number]
        yield Candidate(
            projection, int(row[number]) * projection.units + int(unit[number]),
            float(values[at, column]), float(magnitudes[at, column] / rms[column]),
            None if gain is None or not np.isfinite(gain) else float(gain),
        )  # fmt: skip


def _promising_units(
    projection: Projection, columns: NDArray[np.float64], extremes: Mapping[str, Extremes]
) -> NDArray[np.int64]:
    """Return the units with the greatest weights, and those with the greatest gain bounds."""
    chosen = [columns]
    bounds = _gain_bounds(projection, extremes)
    if bounds is not None:
        chosen.append(columns * bounds)
    tops = [np.argpartition(-scores, min(CANDIDATE_UNITS, len(scores)) - 1) for scores in chosen]
    return np.unique(np.concatenate([top[:CANDIDATE_UNITS] for top in tops]))


def _spaced_rows(projection: Projection, count: int) -> NDArray[np.int64]:
    total = projection.tensor.layout.rows
    return np.linspace(0, total - 1, min(count, total)).astype(np.int64)


def _sampled_rows(projection: Projection) -> NDArray[np.int64]:
    total = projection.tensor.layout.rows
    return _spaced_rows(projection, total if total <= SAMPLE_ALL_BELOW else SAMPLED_ROWS)


def _column_rms(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rms of each column without its greatest value, shape (columns,)."""
    squares = np.square(np.where(np.isfinite(values), values, 0))
    others = np.maximum(squares.sum(0) - squares.max(0), 0)
    rms: NDArray[np.float64] = np.sqrt(others / max(len(values) - 1, 1))
    return rms


def _row_heaviness(candidate: Candidate) -> float | None:
    """Return the norm of the candidate's output row over the median norm of sampled rows."""
    projection = candidate.projection
    if projection.transposed:
        return None
    own = candidate.element // projection.units
    rows = [own, *_spaced_rows(projection, NORM_ROWS).tolist()]
    values = read_rows(projection.tensor, rows)
    squares = np.einsum("ij,ij->i", values, values)
    heaviness = float(np.sqrt(squares[0] / np.float32(np.median(squares[1:]))))
    return heaviness if np.isfinite(heaviness) else None


def _transposed_candidates(
    projection: Projection, rows: NDArray[np.float64]
) -> Iterator[Candidate]:
    """Yield candidates where a unit's outgoing weights are a row, which is read whole."""
    for unit in np.sort(np.argsort(-rows, kind="stable")[:CANDIDATE_UNITS]).tolist():
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


def _path_gains(projection: Projection, paths: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Return for each hidden unit, numbered expert by expert, its producers' part of the gain."""
    if projection.up is None:
        return None
    distinct, inverse = np.unique(paths, return_inverse=True)
    up = _produced(projection, projection.up, distinct)
    other = up if projection.gate is None else _produced(projection, projection.gate, distinct)
    with np.errstate(over="ignore", invalid="ignore"):
        products = np.abs(np.multiply(up, other).sum(1, dtype=np.float64))
    gains = np.sqrt(products) if projection.gate is None else products
    return np.asarray(gains[inverse], np.float64)


def _produced(
    projection: Projection, producer: Producer, paths: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the rows that produce hidden units, the layer norm folded in; shape (n, outputs)."""
    expert, unit = np.divmod(paths, projection.units)
    rows = producer.first_row + expert * producer.expert_rows + unit
    values = read_rows(producer.tensor, rows.tolist())
    if projection.norm is not None:
        scale = read_rows(projection.norm, [0])[0]
        # Gemma's norms multiply by one more than they store
        values *= scale + 1 if "pre_feedforward" in projection.norm.name else scale
    return values
