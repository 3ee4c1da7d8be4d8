"""What a matrix is packed from: weights and scales that it can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightguard_integrations.ternary.engine import native
from weightguard_integrations.ternary.operands import Array, as_numpy, is_torch

MOST_COLUMNS = {True: 1 << 18, False: 1 << 16}
"""Of ternary and of int8 weights: sums of more might leave 32 bits."""


def require_weights(weight: Array, *, ternary: bool) -> NDArray[np.int8]:
    """Return int8 weights [N, K], contiguous; raises TypeError, ValueError for what is none."""
    weight = as_numpy(weight, "weights")
    if weight.dtype != np.int8:
        raise TypeError(f"weights are {weight.dtype}; they must be int8")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weights have shape {weight.shape}; they must be a matrix, not empty")
    most = MOST_COLUMNS[ternary]
    if weight.shape[1] > most:
        raise ValueError(
            f"weights have {weight.shape[1]} columns; there is room for at most {most}"
        )
    weights: NDArray[np.int8] = np.ascontiguousarray(weight)
    at = native.first_invalid(ternary, weights)
    if at >= 0:
        row, column = divmod(at, weights.shape[1])
        raise ValueError(f"weight [{row}, {column}] is {weights[row, column]}, not -1, 0 or 1")
    return weights


def as_scales(scale: Any, rows: int) -> NDArray[np.float32]:
    """Return one scale, or one a row, as float32 [1] or [rows] in memory of their own.

    Raises TypeError for what are no numbers, ValueError for others than that and not finite ones.
    """
    if is_torch(scale) or isinstance(scale, np.ndarray):
        scale = as_numpy(scale, "scale")
    given = np.asarray(scale)
    if given.dtype.kind not in "fiu" and given.dtype.name != "bfloat16":
        raise TypeError(f"scales are {given.dtype}; they must be numbers")
    if given.ndim > 1:
        raise ValueError(f"scales have shape {given.shape}; give one, or one a row")
    with np.errstate(over="ignore"):
        scales = np.array(given, np.float32).reshape(-1)
    if len(scales) not in (1, rows):
        raise ValueError(f"{len(scales)} scales for {rows} rows; give one, or one a row")
    if not np.isfinite(scales).all():
        raise ValueError("scales must be finite")
    return scales
