"""GGML blocks as the binary32 numbers that they stand for, native or through the gguf package.

Both give the same bits (docs/spec/fingerprint-v1.md, section 5): products and differences are
rounded to nearest in the order of ggml's reference, none fused; every NaN is 0x7FC00000.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from weightguard.tensor import DTYPES

try:
    from weightguard.scan import _native
except ImportError:
    _native = None  # type: ignore[assignment]

PIECE_BLOCKS = 1 << 10
"""Blocks that the gguf package converts at a time; its temporaries take some 40 bytes a number."""


def dequantise(dtype_name: str, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the values of ``blocks``, uint8 of shape (n, block_bytes), as (n * block_elements,).

    Raises ValueError for another shape, and for a dtype whose blocks have no defined values
    (``DType.is_quantised`` is False).
    """
    dtype = DTYPES.get(dtype_name)
    if dtype is None or not dtype.is_quantised:
        raise ValueError(f"{dtype_name!r:.40} has no blocks with defined values")
    if blocks.dtype != np.uint8 or blocks.ndim != 2 or blocks.shape[1] != dtype.block_bytes:
        raise ValueError(f"{dtype_name} needs uint8 blocks of {dtype.block_bytes} bytes")
    out = np.empty(len(blocks) * dtype.block_elements, np.float32)
    if _native is not None:
        _native.dequantise(dtype_name, np.ascontiguousarray(blocks), out)
    else:
        _dequantise_slowly(dtype_name, blocks, out.reshape(-1, dtype.block_elements))
    return out


def _dequantise_slowly(
    dtype_name: str, blocks: NDArray[np.uint8], out: NDArray[np.float32]
) -> None:
    gguf = import_module("gguf")
    kind = gguf.GGMLQuantizationType[dtype_name]
    for start in range(0, len(blocks), PIECE_BLOCKS):
        piece = np.ascontiguousarray(blocks[start : start + PIECE_BLOCKS])
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(piece, kind)
        out[start : start + PIECE_BLOCKS] = np.where(np.isnan(values), np.float32(np.nan), values)
