"""A second look at values: whole tensors that a finding asks for, single rows and elements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightguard.scan.dequantise import dequantise
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.scan.formats import FORMATS
from weightguard.tensor import TensorView

MAX_READ_WHOLE = 4 << 20
"""Bytes of a tensor that are cheaper to read at once than by many single elements."""
MIN_PIECES = 64


def iterate_values(tensor: TensorView) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (number of the first scalar, scalars as binary64) in pieces of about 1 MiB.

    Complex elements give two scalars, GGML blocks their dequantised values.
    """
    dtype = tensor.dtype
    step = BLOCK_BYTES // dtype.block_bytes * dtype.block_bytes
    for start in range(0, tensor.nbytes, step):
        data = np.frombuffer(tensor.read(start, min(start + step, tensor.nbytes)), np.uint8)
        first = start // dtype.block_bytes * dtype.block_scalars
        yield first, decode_exact(tensor, data)


def element_index(tensor: TensorView, scalar: int) -> tuple[int, ...]:
    """Return the index of the element that scalar number ``scalar`` belongs to."""
    return tensor.index(scalar * tensor.dtype.block_elements // tensor.dtype.block_scalars)


def scalar_offset(tensor: TensorView, scalar: int) -> int | None:
    """Return the byte in the tensor's file where scalar number ``scalar`` begins, if it has one."""
    if tensor.offset is None:
        return None
    return tensor.offset + scalar // tensor.dtype.block_scalars * tensor.dtype.block_bytes


def read_rows(tensor: TensorView, rows: Sequence[int]) -> NDArray[np.float32]:
    """Return the values of some rows as binary32, shape (len(rows), row_scalars).

    Rows are those of the tensor's layout; values beyond binary32 become infinite.
    """
    layout = tensor.layout
    data = _read_pieces(tensor, np.asarray(rows, np.int64), layout.row_bytes)
    return decode_bytes(tensor, data.reshape(-1)).reshape(len(rows), layout.row_scalars)


def read_grid(
    tensor: TensorView, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the values where some rows and columns cross, as binary32, (rows, columns).

    For dtypes with one scalar an element. Rows are read whole, a few MiB at a time, but only
    the dtype blocks of the columns are decoded.
    """
    dtype, row_bytes = tensor.dtype, tensor.layout.row_bytes
    blocks, inside = np.divmod(columns, dtype.block_elements)
    if tensor.nbytes <= MAX_READ_WHOLE:
        return _cross(tensor, _read_whole(tensor), rows, blocks, inside)
    grid = np.empty((len(rows), len(columns)), np.float32)
    at_once = max(1, MAX_READ_WHOLE // row_bytes)
    for start in range(0, len(rows), at_once):
        data = _read_pieces(tensor, rows[start : start + at_once], row_bytes)
        places = np.arange(len(data))
        grid[start : start + at_once] = _cross(tensor, data, places, blocks, inside)
    return grid


def _cross(
    tensor: TensorView,
    data: NDArray[np.uint8],
    rows: NDArray[np.int64],
    blocks: NDArray[np.int64],
    inside: NDArray[np.int64],
) -> NDArray[np.float32]:
    dtype = tensor.dtype
    # blocks as opaque items: NumPy picks those several times faster than runs of bytes
    by_block = data.view(f"V{dtype.block_bytes}").reshape(
        -1, tensor.layout.row_bytes // dtype.block_bytes
    )
    picked = np.ascontiguousarray(by_block[rows[:, None], blocks])
    values = decode_bytes(tensor, picked.view(np.uint8).reshape(-1))
    values = values.reshape(len(rows), len(blocks), dtype.block_elements)
    return values[:, np.arange(len(blocks)), inside]


def gather(tensor: TensorView, elements: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the values of single elements (numbers in C order) as binary32, shape (n,).

    For dtypes with one scalar an element. Reads the dtype block of each element, or a small
    tensor whole.
    """
    dtype = tensor.dtype
    places = np.asarray(elements, np.int64)
    blocks, inside = np.divmod(places, dtype.block_elements)
    data = _read_pieces(tensor, blocks, dtype.block_bytes)
    values = decode_bytes(tensor, data.reshape(-1)).reshape(-1, dtype.block_elements)
    return values[np.arange(len(places)), inside]


def _read_pieces(
    tensor: TensorView, places: NDArray[np.int64], piece_bytes: int
) -> NDArray[np.uint8]:
    """Return pieces of equal size, shape (n, piece_bytes); a small tensor is read whole."""
    if len(places) > MIN_PIECES and tensor.nbytes <= MAX_READ_WHOLE:
        return _read_whole(tensor).reshape(-1, piece_bytes)[places]
    data = np.empty((len(places), piece_bytes), np.uint8)
    for piece, place in zip(data, places.tolist(), strict=True):
        tensor.source.read_into(place * piece_bytes, piece.data)
    return data


def _read_whole(tensor: TensorView) -> NDArray[np.uint8]:
    # not zeroed first, unlike a bytearray: that would cost as much as reading does
    data = np.empty(tensor.nbytes, np.uint8)
    tensor.source.read_into(0, data.data)
    return data


def exact_bits(tensor: TensorView, element: int) -> int:
    """Return the exact scalar bits of one element; GGML blocks give dequantised binary32.

    Raises ValueError for dtypes whose elements are no scalars.
    """
    dtype = tensor.dtype
    if not dtype.has_scalar_elements:
        raise ValueError(f"an element of {dtype.name} is no scalar with bits of its own")
    block, inside = divmod(element, dtype.block_elements)
    start = block * dtype.block_bytes
    data = np.frombuffer(tensor.read(start, start + dtype.block_bytes), np.uint8)
    if dtype.is_quantised:
        values = dequantise(dtype.name, data.reshape(1, -1))
        return int(values.view(np.uint32)[inside])
    bits = FORMATS[dtype.scalar].bits
    return int.from_bytes(data.tobytes(), "little") >> inside * bits & (1 << bits) - 1


def decode_bytes(tensor: TensorView, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the scalars of whole dtype blocks as binary32."""
    dtype = tensor.dtype
    if dtype.is_quantised:
        return dequantise(dtype.name, data.reshape(-1, dtype.block_bytes))
    if dtype.scalar == "BF16":
        return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.scalar in ("F16", "F32"):
            return data.view(f"<f{dtype.block_bytes}").astype(np.float32)
        return decode_exact(tensor, data).astype(np.float32)


def decode_exact(tensor: TensorView, data: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the scalars of whole dtype blocks as binary64."""
    dtype = tensor.dtype
    if dtype.is_quantised:
        values = dequantise(dtype.name, data.reshape(-1, dtype.block_bytes))
        return values.astype(np.float64)
    form = FORMATS[dtype.scalar]
    if form.bits >= 8:
        return form.decode_array(data.view(f"<u{form.bits // 8}"))
    return form.decode_array(_unpack(data, form.bits, dtype.block_bytes))


def _unpack(data: NDArray[np.uint8], bits: int, group_bytes: int) -> NDArray[Any]:
    """Return sub-byte codes, low bits first, one a byte."""
    groups = data.reshape(-1, group_bytes).astype(np.uint32)
    packed = sum(groups[:, byte] << np.uint32(8 * byte) for byte in range(group_bytes))
    shifts = np.arange(0, 8 * group_bytes, bits, dtype=np.uint32)
    codes = np.asarray(packed)[:, None] >> shifts & np.uint32((1 << bits) - 1)
    return codes.astype(np.uint8).ravel()
