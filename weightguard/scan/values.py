"""A second look at a tensor's values, for the few tensors where a first finding asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightguard.scan.dequantise import dequantise
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.scan.formats import FORMATS
from weightguard.tensor import TensorView


def iterate_values(tensor: TensorView) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (number of the first scalar, scalars as binary64) in pieces of about 1 MiB.

    Complex elements give two scalars, GGML blocks their dequantised values.
    """
    dtype = tensor.dtype
    step = BLOCK_BYTES // dtype.block_bytes * dtype.block_bytes
    for start in range(0, tensor.nbytes, step):
        data = np.frombuffer(tensor.read(start, min(start + step, tensor.nbytes)), np.uint8)
        first = start // dtype.block_bytes * dtype.block_scalars
        yield first, _decode(tensor, data)


def element_index(tensor: TensorView, scalar: int) -> tuple[int, ...]:
    """Return the index of the element that scalar number ``scalar`` belongs to."""
    return tensor.index(scalar * tensor.dtype.block_elements // tensor.dtype.block_scalars)


def _decode(tensor: TensorView, data: NDArray[np.uint8]) -> NDArray[np.float64]:
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
