"""The block kernel in NumPy: what machines without the native module run; same bits, slower.

The three functions do what their namesakes in ``weightguard.scan._native`` do. Source:
docs/spec/fingerprint-v1.md, sections 4 and 5. Memory stays at a few arrays of ``SLICE_ITEMS``
64-bit numbers, whatever the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightguard.scan.formats import FORMATS, ScalarFormat, Special

CHUNK_SCALARS = 4096
SUM_LANES = 32
SLICE_ITEMS = 1 << 17
SMALLEST_BINARY32 = 2.0**-40
GREATEST_BINARY32 = 2.0**60

# places in ``count``
FINITE, NAN, INF, ZERO, SUBNORMAL, MIN_BITS, MAX_BITS = range(7)

UIntArray = NDArray[np.unsignedinteger[Any]]


def residues(
    data: NDArray[np.uint8],
    start: int,
    nbytes: int,
    row_bytes: int,
    word_bytes: int,
    out: NDArray[np.uint64],
) -> None:
    """Write R and S of each row that ``nbytes`` bytes from byte ``start`` on touch.

    ``out`` has shape (rows touched, 2); all sizes are whole words.
    """
    words = data[:nbytes].view(f"<u{word_bytes}")
    out[:] = 0
    first, row_words = start // word_bytes, row_bytes // word_bytes
    for at, rows, place, width in _pieces(first, len(words), row_words, SLICE_ITEMS):
        piece = words[at : at + rows * width].reshape(rows, width).astype(np.uint64)
        row = (first + at) // row_words - first // row_words
        weights = np.arange(place, place + width, dtype=np.uint64)
        out[row : row + rows, 0] += piece.sum(axis=1, dtype=np.uint64)
        out[row : row + rows, 1] += piece @ weights


def statistics(  # noqa: PLR0913, PLR0917 - the native module's, one call a block
    code: str,
    values: NDArray[np.uint8],
    first: int,
    scalars: int,
    row_scalars: int,
    magnitudes: UIntArray,
    columns: UIntArray | None,
    count: NDArray[np.uint64],
    sums: NDArray[np.float64],
) -> None:
    """Add the statistics of ``scalars`` scalars, the first of them the tensor's ``first``.

    ``values`` starts with the scalars' bytes; ``magnitudes`` has one element for each row
    touched, ``columns`` one for each scalar of a row; ``count`` holds finite, nan, inf, zero,
    subnormal, min bits, max bits; ``sums`` sum and sum of squares.
    """
    form = FORMATS[code]
    first_row = first // row_scalars
    for at, rows, place, width in _pieces(first, scalars, row_scalars, SLICE_ITEMS):
        bits = _scalar_bits(form, values, at, rows * width).reshape(rows, width)
        size = _magnitudes(form, bits)
        finite = _finite(form, bits, size)
        if not finite.all():
            size = np.where(finite, size, size.dtype.type(0))
        _count(form, bits, size, finite, count)
        row = (first + at) // row_scalars - first_row
        held = magnitudes[row : row + rows]
        np.maximum(held, size.max(axis=1), out=held)
        if columns is not None:
            held = columns[place : place + width]
            np.maximum(held, size.max(axis=0), out=held)
        _add_sums(form, bits, finite, sums)


def fused(  # noqa: PLR0913, PLR0917
    code: str,
    data: NDArray[np.uint8],
    start: int,
    nbytes: int,
    row_bytes: int,
    out: NDArray[np.uint64],
    magnitudes: UIntArray,
    columns: UIntArray | None,
    count: NDArray[np.uint64],
    sums: NDArray[np.float64],
) -> None:
    """Do both for a format whose scalars are the residues' words."""
    width = FORMATS[code].bits // 8
    residues(data, start, nbytes, row_bytes, width, out)
    statistics(
        code, data, start // width, nbytes // width, row_bytes // width,
        magnitudes, columns, count, sums,
    )  # fmt: skip


def format_code(name: str) -> str:
    """Return what ``statistics`` and ``fused`` take as the code of a scalar format."""
    return name


def _pieces(
    first: int, items: int, row_items: int, limit: int
) -> Iterator[tuple[int, int, int, int]]:
    """Cut ``items`` items from item ``first`` on into (offset, rows, place in row, width).

    A piece is part of one row, a whole number of chunks from where the row's run starts unless
    it ends the run; or several whole rows. It has at most ``limit`` items.
    """
    at = 0
    while at < items:
        place = (first + at) % row_items
        run = min(row_items - place, items - at)
        whole = (items - at) // row_items if place == 0 and row_items <= limit else 0
        if whole:
            rows = min(whole, limit // row_items)
            yield at, rows, 0, row_items
            at += rows * row_items
            continue
        for done in range(0, run, limit):
            yield at + done, 1, place + done, min(limit, run - done)
        at += run


def _scalar_bits(form: ScalarFormat, values: NDArray[np.uint8], at: int, n: int) -> UIntArray:
    """Return the bits of ``n`` scalars from scalar ``at`` on, one an element."""
    if form.bits >= 8:
        width = form.bits // 8
        return values[at * width : (at + n) * width].view(f"<u{width}")
    position = (at + np.arange(n, dtype=np.int64)) * form.bits
    byte, shift = position >> 3, (position & 7).astype(np.uint16)
    low = values[byte].astype(np.uint16)
    high = values[np.minimum(byte + 1, len(values) - 1)].astype(np.uint16)
    both: UIntArray = (low | high << np.uint16(8)) >> shift & np.uint16(form.mask)
    return both.astype(np.uint8)


def _magnitudes(form: ScalarFormat, bits: UIntArray) -> UIntArray:
    """Return the magnitude bits of an array of scalar bits, finite or not."""
    kind = bits.dtype.type
    if not form.signed:
        return bits
    if form.is_float:
        return np.bitwise_and(bits, kind(form.mask ^ form.sign_bit))
    negated = (~bits + kind(1)) & kind(form.mask)
    return np.where((bits & kind(form.sign_bit)) != 0, negated, bits)


def _finite(form: ScalarFormat, bits: UIntArray, size: UIntArray) -> NDArray[np.bool_]:
    kind = bits.dtype.type
    if form.special is Special.NEGATIVE_ZERO:
        return np.not_equal(bits, kind(form.sign_bit))
    if form.special is Special.NONE:
        return np.ones(bits.shape, np.bool_)
    return np.less(size, kind(form.first_not_finite))


def _count(
    form: ScalarFormat,
    bits: UIntArray,
    size: UIntArray,
    finite: NDArray[np.bool_],
    count: NDArray[np.uint64],
) -> None:
    """Add to ``count``; ``size`` is 0 where a scalar is not finite."""
    kind = bits.dtype.type
    found = np.count_nonzero(finite)
    unusual = bits[~finite] if found < bits.size else bits[:0]
    inf = 0
    if form.special is Special.IEEE:
        inf = int(np.count_nonzero(_magnitudes(form, unusual) == kind(form.first_not_finite)))
    zero = np.count_nonzero(size == 0) - unusual.size if form.has_zero else 0
    subnormal = np.count_nonzero(size < kind(form.least_normal)) - unusual.size - zero
    if found:
        # a scalar of the piece in place of what is not finite moves no extreme
        usual = bits if found == bits.size else np.where(finite, bits, bits[finite][0])
        _count_extremes(form, usual, bool(count[FINITE]), count)
    found_each = (found, unusual.size - inf, inf, zero, subnormal if form.has_zero else 0)
    count[: SUBNORMAL + 1] += np.array(found_each, np.uint64)


def _count_extremes(
    form: ScalarFormat, bits: UIntArray, held: bool, count: NDArray[np.uint64]
) -> None:
    unused = 8 * bits.itemsize - form.bits
    raised = bits << bits.dtype.type(unused)
    least, greatest = raised.min(), raised.max()
    if form.signed:
        signed = raised.view(f"i{bits.itemsize}")
        lowest, highest = signed.min().view(bits.dtype), signed.max().view(bits.dtype)
        # negative floats are ordered as their bits are, the other way round
        all_negative, any_negative = int(signed.max()) < 0, int(signed.min()) < 0
        if form.is_float:
            lowest = greatest if any_negative else least
            highest = least if all_negative else highest
        least, greatest = lowest, highest
    extremes = [int(least) >> unused, int(greatest) >> unused]
    if held:
        extremes += [int(count[MIN_BITS]), int(count[MAX_BITS])]
    count[MIN_BITS] = min(extremes, key=form.order_key)
    count[MAX_BITS] = max(extremes, key=form.order_key)


def _add_sums(
    form: ScalarFormat, bits: UIntArray, finite: NDArray[np.bool_], sums: NDArray[np.float64]
) -> None:
    """Add the chunk sums of a piece, shape (rows, width), in order: rows, then chunks."""
    width = bits.shape[1]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = form.decode_array(bits)
        if not finite.all():
            values[~finite] = 0
        chunks = [
            _chunk_sums(form, values[:, start : start + CHUNK_SCALARS])
            for start in range(0, width, CHUNK_SCALARS)
        ]
        in_order = np.stack(chunks, axis=1).reshape(-1, 2)
        sums[:] = np.add.accumulate(np.concatenate([sums[None], in_order]), axis=0)[-1]


def _chunk_sums(form: ScalarFormat, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sum and sum of squares of one chunk in each row, shape (rows, 2)."""
    wide = np.ones(len(values), np.bool_)
    if form.is_float and form.bits <= 32:
        greatest = np.maximum(values.max(axis=1), -values.min(axis=1))
        wide = (greatest != 0) & ~(
            (greatest >= SMALLEST_BINARY32) & (greatest <= GREATEST_BINARY32)
        )
    result = np.empty((len(values), 2))
    for chosen, lane in ((wide, np.float64), (~wide, np.float32)):
        if chosen.all():
            return _lane_sums(values.astype(lane))
        if chosen.any():
            result[chosen] = _lane_sums(values[chosen].astype(lane))
    return result


def _lane_sums(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    rows, width = values.shape
    steps = -(-width // SUM_LANES)
    if width % SUM_LANES:
        padded = np.zeros((rows, steps * SUM_LANES), values.dtype)
        padded[:, :width] = values
        values = padded
    terms = values.reshape(rows, steps, SUM_LANES)
    result = np.empty((rows, 2))
    for column, lanes in enumerate((_in_order(terms), _in_order(terms * terms))):
        folded = lanes.astype(np.float64)
        half = SUM_LANES // 2
        while half:
            folded = folded[:, :half] + folded[:, half:]
            half //= 2
        result[:, column] = folded[:, 0]
    return result


def _in_order(terms: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the sums over axis 1, each term added in turn (NumPy's sum promises no order)."""
    lanes = np.zeros((terms.shape[0], terms.shape[2]), terms.dtype)
    for step in range(terms.shape[1]):
        lanes += terms[:, step]
    return lanes
