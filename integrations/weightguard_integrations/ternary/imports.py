"""From the forms in which ternary weights are published to int8 weights and scales."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weightguard.scan.dequantise import dequantise
from weightguard.tensor import DTYPES
from weightguard_integrations.ternary.operands import Array, as_numpy, is_torch

LEAST_MEAN = 1e-5
"""Below it the mean magnitude is not divided by, as in the models' own code."""


def as_float32(weight: Array) -> NDArray[np.float32]:
    """Return a float matrix of NumPy or torch as float32.

    Raises TypeError for other numbers and for what has no values in memory, ValueError for other
    shapes, NaN and infinities.
    """
    values = as_numpy(weight, "weight")
    if values.dtype.name not in ("float32", "float16", "bfloat16"):
        raise TypeError(f"weights are {values.dtype}; they must be float32, float16 or bfloat16")
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"weights have shape {values.shape}; they must be a matrix, not empty")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("weights hold NaN or infinities")
    return values


def absmean(weight: Array) -> tuple[NDArray[np.int8], np.float32]:
    """Return round(w / mean|w|) clamped to {-1, 0, 1}, and mean|w| (BitNet b1.58)."""
    values = as_float32(weight)
    mean = np.float32(max(np.abs(values).mean(dtype=np.float64), LEAST_MEAN))
    codes = np.clip(np.rint(values * (np.float32(1) / mean)), -1, 1).astype(np.int8)
    return codes, mean


def absmax_rows(weight: Array) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return weights rounded to 127 steps of each row's greatest magnitude, and the steps."""
    values = as_float32(weight)
    steps = np.maximum(np.abs(values).max(axis=1), np.float32(np.finfo(np.float32).tiny)) / 127
    codes = np.clip(
        np.rint(values / np.maximum(steps, np.finfo(np.float32).tiny)[:, None]), -127, 127
    )
    return codes.astype(np.int8), steps.astype(np.float32)


def hugging_face(packed: Array) -> NDArray[np.int8]:
    """Return int8 weights [N, K] of transformers' packed uint8 [N/4, K]."""
    codes = as_numpy(packed, "packed")
    if codes.dtype != np.uint8:
        raise TypeError(f"packed BitNet weights are {codes.dtype}; they must be uint8")
    if codes.ndim != 2:
        raise ValueError(f"packed BitNet weights have shape {codes.shape}, not [N/4, K]")
    weights = np.concatenate([(codes >> shift & 3) for shift in (0, 2, 4, 6)])
    bad = np.argwhere(weights == 3)
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(f"the code of weight [{row}, {column}] is 3, which is no weight")
    return weights.astype(np.int8) - np.int8(1)


def hugging_face_scale(weight_scale: Any, *, divides: bool) -> NDArray[np.float32]:
    """Return the number that outputs are multiplied by."""
    if is_torch(weight_scale) or isinstance(weight_scale, np.ndarray):
        weight_scale = as_numpy(weight_scale, "weight_scale")
    scale = np.array(weight_scale, np.float32).reshape(-1)
    if not np.isfinite(scale).all() or (divides and not scale.all()):
        raise ValueError(
            "weight_scale must be finite, and not zero where outputs are divided by it"
        )
    return np.float32(1) / scale if divides else scale


def gguf(
    blocks: Array, kind: Literal["TQ1_0", "TQ2_0"]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return weights and scales of rows of TQ1_0 or TQ2_0 blocks."""
    if kind not in ("TQ1_0", "TQ2_0"):
        raise ValueError(f"{kind!r:.40} is not TQ1_0 or TQ2_0")
    dtype, blocks = DTYPES[kind], as_numpy(blocks, "GGML blocks")
    if blocks.dtype != np.uint8:
        raise TypeError("GGML blocks must be uint8")
    if blocks.ndim != 2 or 0 in blocks.shape or blocks.shape[1] % dtype.block_bytes:
        raise ValueError(
            f"shape {blocks.shape} is not [rows, whole {kind} blocks of {dtype.block_bytes} bytes]"
        )
    rows = blocks.shape[0]
    flat = np.ascontiguousarray(blocks).reshape(-1, dtype.block_bytes)
    scales = flat[:, -2:].copy().view(np.float16).astype(np.float32).reshape(rows, -1)
    if not np.isfinite(scales).all():
        raise ValueError("a block's scale is NaN or infinite")
    unit = flat.copy()
    unit[:, -2:] = np.array([1], np.float16).view(np.uint8)
    codes = dequantise(kind, unit).reshape(rows, -1)
    if (np.abs(codes) > 1).any():
        row, column = np.argwhere(np.abs(codes) > 1)[0].tolist()
        raise ValueError(f"weight [{row}, {column}] is {codes[row, column]:g}, not -1, 0 or 1")
    live = codes.reshape(rows, scales.shape[1], -1).any(axis=2) & (scales != 0)
    codes = np.where(np.repeat(live, dtype.block_elements, axis=1), codes, 0)
    row_scales = np.take_along_axis(scales, live.argmax(axis=1)[:, None], axis=1)
    if (live & (scales != row_scales)).any():
        raise ValueError("blocks of one row have different scales; this layout has one a row")
    return codes.astype(np.int8), np.where(live.any(axis=1), row_scales[:, 0], 0).astype(np.float32)
