"""How far two tensors of one shape are apart, value by value, block by block as one is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightguard.errors import CheckpointError, WeightguardError
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.scan.formats import FORMATS
from weightguard.scan.values import decode_exact
from weightguard.tensor import DType, TensorView

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Extent:
    """Least and greatest finite value (NaN where there is none) and the sum of squares."""

    least: float
    greatest: float
    squares: float


@dataclass(frozen=True, slots=True)
class Odd:
    """Scalars that are NaN, or infinite, on one side only: how many, and the first one's number."""

    nan: int = 0
    inf: int = 0
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Two tensors beside each other; sums run over the scalars that are finite in both.

    ``squares`` is the sum of (new - base)^2, ``product`` that of new * base.
    ``changed`` counts scalars with other bits, or with other values where the dtypes differ;
    ``greatest`` is the greatest |new - base|, at scalar number ``place``. ``appeared`` are NaN and
    infinities of the new tensor that are none in the base, ``gone`` those of the base that are none
    in the new one. ``rounded`` tells whether every scalar is within the rounding of a cast between
    the two dtypes.
    """

    scalars: int
    changed: int
    squares: float
    base_squares: float
    new_squares: float
    product: float
    greatest: float
    place: int
    appeared: Odd
    gone: Odd
    rounded: bool
    base: Extent
    new: Extent


def comparable(base: TensorView, new: TensorView) -> bool:
    """Return whether values stand for each other: one shape, and dtypes whose values we know."""
    if base.shape != new.shape or base.dtype.is_opaque or new.dtype.is_opaque:
        return False
    return _scalars(base.dtype) == _scalars(new.dtype)


class ComparingSource:
    """The ByteSource of ``new`` that compares each block with ``base`` while it is at hand.

    Give a scan a view with this source in place of the tensor's own: it reads every block once.
    Safe to read from several threads; the result does not depend on their timing.
    """

    def __init__(self, base: TensorView, new: TensorView):
        self._base, self._new = base, new
        self._same_dtype = base.dtype == new.dtype
        self._unit, self._least = _rounding(base.dtype, new.dtype)
        self._pieces: dict[int, Difference] = {}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        self._new.source.read_into(offset, buffer)
        size = self._new.dtype.block_bytes
        first = -(-offset // size)
        last = -(-min(offset + BLOCK_BYTES, self._new.nbytes) // size)
        if offset % BLOCK_BYTES == 0 and last * size - offset <= len(buffer):
            data = np.frombuffer(buffer, np.uint8)[first * size - offset : last * size - offset]
            self._pieces[offset] = self._compare(first, last, data)

    def result(self) -> Difference:
        """Return the whole difference; every block must have been read."""
        pieces = [self._pieces[start] for start in sorted(self._pieces)]
        greatest = max(pieces, key=lambda piece: piece.greatest, default=None)
        return Difference(
            sum(piece.scalars for piece in pieces),
            sum(piece.changed for piece in pieces),
            _total(piece.squares for piece in pieces),
            _total(piece.base_squares for piece in pieces),
            _total(piece.new_squares for piece in pieces),
            _total(piece.product for piece in pieces),
            greatest.greatest if greatest else 0.0,
            greatest.place if greatest else 0,
            _joined(piece.appeared for piece in pieces),
            _joined(piece.gone for piece in pieces),
            all(piece.rounded for piece in pieces),
            _union([piece.base for piece in pieces]),
            _union([piece.new for piece in pieces]),
        )

    def _compare(self, first: int, last: int, data: NDArray[np.uint8]) -> Difference:
        new = decode_exact(self._new, data)
        begin = first * self._new.dtype.block_elements
        raw, base = self._read_base(begin, last * self._new.dtype.block_elements)
        place = begin * _scalars(self._new.dtype)
        if self._same_dtype and np.array_equal(raw, data):
            extent = _extent(new, np.isfinite(new))
            squares = extent.squares
            return Difference(len(new), 0, 0.0, squares, squares, squares, 0.0, place, Odd(), Odd(),
                              True, extent, extent)  # fmt: skip
        return self._measure(place, base, new, self._count_changed(raw, data, base, new))

    def _measure(self, place: int, base: Values, new: Values, changed: int) -> Difference:
        known, finite = np.isfinite(base), np.isfinite(new)
        both = known & finite
        extents = _extent(base, known), _extent(new, finite)
        old, now = np.where(both, base, 0.0), np.where(both, new, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            moved = np.abs(now - old)
            bound = self._unit * np.maximum(np.abs(old), np.abs(now)) + self._least
            farthest = int(np.argmax(moved)) if len(moved) else 0
            return Difference(
                len(new),
                changed,
                float(np.dot(moved, moved)),
                float(np.dot(old, old)),
                float(np.dot(now, now)),
                float(np.dot(old, now)),
                float(moved[farthest]) if len(moved) else 0.0,
                place + farthest,
                _odd(place, new, base),
                _odd(place, base, new),
                bool((moved <= bound).all()) and _same_odd(base[~both], new[~both]),
                *extents,
            )

    def _count_changed(
        self, raw: NDArray[np.uint8], data: NDArray[np.uint8], base: Values, new: Values
    ) -> int:
        dtype = self._new.dtype
        if self._same_dtype and dtype.block_elements == 1:
            words = dtype.block_bytes // dtype.block_scalars
            return int(np.count_nonzero(raw.view(f"V{words}") != data.view(f"V{words}")))
        differ = (base != new) & ~(np.isnan(base) & np.isnan(new))
        return int(np.count_nonzero(differ))

    def _read_base(self, begin: int, end: int) -> tuple[NDArray[np.uint8], Values]:
        """Return bytes and values of elements ``begin:end`` of the base."""
        dtype = self._base.dtype
        first, last = begin // dtype.block_elements, -(-end // dtype.block_elements)
        data = np.empty((last - first) * dtype.block_bytes, np.uint8)
        try:
            self._base.source.read_into(first * dtype.block_bytes, data.data)
        except CheckpointError as error:
            # of the base: it says nothing about the checkpoint that is looked at
            raise WeightguardError(f"the base cannot be read: {error}") from error
        skipped = (begin - first * dtype.block_elements) * _scalars(dtype)
        wanted = (end - begin) * _scalars(dtype)
        return data, decode_exact(self._base, data)[skipped : skipped + wanted]


def _scalars(dtype: DType) -> int:
    """Return the scalars of one element: two for complex numbers."""
    return max(1, dtype.block_scalars // dtype.block_elements)


def _rounding(base: DType, new: DType) -> tuple[float, float]:
    """Return the relative and the absolute error of a cast: one unit in the last place.

    Half a unit is what rounding to nearest leaves; casts by truncation leave a whole one.
    """
    relative = least = 0.0
    for form in (FORMATS[base.scalar], FORMATS[new.scalar]):
        if form.is_float and form.special is not form.special.NONE:
            relative = max(relative, 2.0**-form.mantissa)
            least = max(least, 2.0 ** (1 - form.bias - form.mantissa))
    return relative, least


def _extent(values: Values, finite: NDArray[np.bool_]) -> Extent:
    if not finite.all():
        values = values[finite]
    if not len(values):
        return Extent(math.nan, math.nan, 0.0)
    with np.errstate(over="ignore"):
        squares = float(np.dot(values, values))
    return Extent(float(values.min()), float(values.max()), squares)


def _odd(first: int, values: Values, others: Values) -> Odd:
    """Return the NaN and infinities of ``values`` that are none in ``others``."""
    nan = np.isnan(values) & ~np.isnan(others)
    inf = np.isinf(values) & ~np.isinf(others)
    places = np.flatnonzero(nan | inf)
    if not len(places):
        return Odd()
    return Odd(int(np.count_nonzero(nan)), int(np.count_nonzero(inf)), first + int(places[0]))


def _same_odd(base: Values, new: Values) -> bool:
    return bool(((base == new) | (np.isnan(base) & np.isnan(new))).all())


def _joined(pieces: Iterable[Odd]) -> Odd:
    """Return what pieces in order amount to."""
    found = [piece for piece in pieces if piece.place is not None]
    place = found[0].place if found else None
    return Odd(sum(piece.nan for piece in found), sum(piece.inf for piece in found), place)


def _union(extents: list[Extent]) -> Extent:
    known = [extent for extent in extents if not math.isnan(extent.least)]
    return Extent(
        min((extent.least for extent in known), default=math.nan),
        max((extent.greatest for extent in known), default=math.nan),
        _total(extent.squares for extent in known),
    )


def _total(values: Iterable[float]) -> float:
    """Return an exact sum, infinite where a part is or where it overflows."""
    numbers = list(values)
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        return math.inf
