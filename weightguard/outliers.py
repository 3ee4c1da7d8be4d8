"""Outlier channels: rows and columns far heavier than their tensor's others.

Heaviness is a channel's greatest magnitude over the median of its tensor's channels. Both come
from the row and column maxima of the streaming pass, so that nothing is read twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weightguard.salient import OutlierChannel, RecurringChannel, significant
from weightguard.scan.fingerprint import TensorFingerprint, UIntArray
from weightguard.scan.formats import FORMATS, ScalarFormat
from weightguard.superweights.projections import Projection, is_matrix, layer_of
from weightguard.tensor import TensorView

MIN_HEAVINESS = 4
"""In SmolLM2-135M 259 of 300,000 channels reach it, in all-MiniLM-L6-v2 111 of 110,000."""

MIN_CHANNELS = 16
"""A median over fewer says little."""

MAX_ROWS = 1 << 20
"""Rows beyond which a tensor's maxima are not gathered, so that memory stays bounded."""

MAX_PER_AXIS = 8
MAX_CHANNELS = 256
"""Channels that are reported of an axis of one tensor, and of a model; the heaviest ones."""

MIN_RECURRENCE = 3
MAX_RECURRING = 16

Axis = Literal["row", "column"]


@dataclass(frozen=True, slots=True)
class Extremes:
    """Greatest magnitudes as bits: of every row, shape (rows,), and column, (row_scalars,)."""

    rows: UIntArray
    columns: UIntArray | None

    def of(self, axis: Axis) -> UIntArray | None:
        """Return the maxima along one axis."""
        return self.rows if axis == "row" else self.columns


class ExtremesObserver:
    """Observes one tensor and hands its row and column maxima to ``take``."""

    def __init__(self, tensor: TensorView, take: Callable[[TensorView, Extremes], None]):
        self._tensor, self._take = tensor, take
        kind = FORMATS[tensor.dtype.scalar].magnitude_dtype
        self._rows: UIntArray = np.zeros(tensor.layout.rows, kind)

    def residues(self, first_row: int, residues: NDArray[Any]) -> None:
        """See TensorObserver; residues say nothing about magnitudes."""

    def magnitudes(self, first_row: int, magnitudes: UIntArray) -> None:
        """See TensorObserver."""
        self._rows[first_row : first_row + len(magnitudes)] = magnitudes

    def finished(self, fingerprint: TensorFingerprint) -> None:
        """See TensorObserver."""
        self._take(self._tensor, Extremes(self._rows, fingerprint.columns))


def has_channels(tensor: TensorView) -> bool:
    """Return whether outlier channels are looked for in a tensor: in matrices of floats."""
    return is_matrix(tensor) and tensor.layout.rows <= MAX_ROWS


def outlier_channels(tensor: TensorView, extremes: Extremes) -> list[OutlierChannel]:
    """Return the channels of one tensor that reach ``MIN_HEAVINESS``, heaviest first."""
    form = FORMATS[tensor.dtype.scalar]
    channels: list[OutlierChannel] = []
    axes: tuple[Axis, ...] = ("row", "column")
    for axis in axes:
        bits = extremes.of(axis)
        if bits is None or len(bits) < MIN_CHANNELS:
            continue
        # magnitude bits order as the numbers do
        middle = len(bits) // 2
        median = int(np.partition(bits, middle)[middle])
        heavy = np.flatnonzero(bits >= _least_heavy(form, median)) if median else ()
        ranked = sorted((-int(bits[i]), int(i)) for i in heavy)[:MAX_PER_AXIS]
        for negative, index in ranked:
            value = abs(float(form.decode(-negative)))
            heaviness = significant(value / abs(float(form.decode(median))))
            channels.append(
                OutlierChannel(
                    tensor.name, axis, index, form.hexadecimal(-negative), value, heaviness
                )
            )
    return channels


def _least_heavy(form: ScalarFormat, median: int) -> int:
    """Return the magnitude bits of ``MIN_HEAVINESS`` times a float's magnitude bits.

    Four times a number is two exponents up; a subnormal one has no exponent to raise.
    """
    return min(median + (2 << form.mantissa), 4 * median)


def heaviest(channels: Iterable[OutlierChannel]) -> tuple[OutlierChannel, ...]:
    """Return the heaviest channels of a model, heaviest first, at most ``MAX_CHANNELS``."""
    order = sorted(channels, key=lambda c: (-c.heaviness, c.tensor, c.axis, c.index))
    return tuple(order[:MAX_CHANNELS])


def recurring_channels(
    channels: Iterable[OutlierChannel],
    tensors: Mapping[str, TensorView],
    projections: Iterable[Projection],
) -> tuple[RecurringChannel, ...]:
    """Return the residual channels that are outliers in several tensors, most frequent first.

    A residual channel is a row of what writes to the residual stream (MLP and attention output
    projections) and a column of what reads it.
    """
    hidden = {projection.outputs for projection in projections}
    if len(hidden) != 1:
        return ()
    (width,) = hidden
    touching = {
        name for name, t in tensors.items() if layer_of(name) is not None and width in t.shape
    }
    hits: dict[int, set[str]] = defaultdict(set)
    for channel in channels:
        tensor = tensors[channel.tensor]
        if channel.tensor in touching and _is_residual(tensor, channel.axis, width):
            hits[channel.index % width].add(channel.tensor)
    found = [
        RecurringChannel(
            index, len(names), len(touching), tuple(sorted({layer_of(n) or 0 for n in names}))
        )
        for index, names in hits.items()
        if len(names) >= MIN_RECURRENCE
    ]
    return tuple(sorted(found, key=lambda c: (-c.tensors, c.channel))[:MAX_RECURRING])


_WRITERS = ("o_proj", "out_proj", "down_proj", "c_proj", "dense", "fc2", "w2", "wo", "attn_output",
            "ffn_down")  # fmt: skip


def _is_residual(tensor: TensorView, axis: Axis, width: int) -> bool:
    rows, columns = tensor.shape[-2:]
    if rows == columns:
        writes = any(part in _WRITERS for part in tensor.name.split("."))
        return (axis == "row") is writes
    return (rows if axis == "row" else columns) == width
