"""One scalar of a checkpoint: its exact bits, as range statistics read them."""

from __future__ import annotations

import numpy as np

from weightguard.manifest import ExactValue, exact_value
from weightguard.scan.dequantise import dequantise
from weightguard.tensor import TensorView


def exact_scalar(tensor: TensorView, index: tuple[int, ...]) -> ExactValue:
    """Return element ``index`` of a tensor; GGML blocks give their dequantised binary32.

    Raises ValueError for dtypes whose elements have no bits of their own.
    """
    dtype = tensor.dtype
    block, within = divmod(_element(tensor, index), dtype.block_elements)
    start = block * dtype.block_bytes
    data = tensor.read(start, start + dtype.block_bytes)
    if dtype.is_quantised:
        values = dequantise(dtype.name, np.frombuffer(data, np.uint8)[None])
        return exact_value("F32", int(values[within : within + 1].view(np.uint32)[0]))
    if dtype.block_elements != 1 or dtype.block_scalars != 1:
        raise ValueError(f"an element of {dtype.name} is no scalar with bits of its own")
    return exact_value(dtype.scalar, int.from_bytes(data, "little"))


def _element(tensor: TensorView, index: tuple[int, ...]) -> int:
    element = 0
    for position, size in zip(index, tensor.shape, strict=True):
        element = element * size + position
    return element
