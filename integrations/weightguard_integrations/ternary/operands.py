"""Activations and outputs as addresses: arrays of NumPy and tensors of torch on the CPU.

Everything the kernel takes on trust is checked here: number format, shape, strides, alignment,
device and writability.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A ``numpy.ndarray`` or ``torch.Tensor``; torch is never imported here."""

NUMBERS = {"float32": 0, "float16": 1, "bfloat16": 2}
"""The kernel's number formats, by the names that NumPy (with ml_dtypes) and torch give them."""


class Operand(NamedTuple):
    """One array as the kernel takes it; ``array`` keeps the memory alive."""

    array: Array
    address: int
    number: int


def is_torch(array: Array) -> bool:
    """Whether this is a torch tensor."""
    return type(array).__module__.partition(".")[0] == "torch" and hasattr(array, "data_ptr")


def activations(x: Array, columns: int) -> Operand:
    """Return x, of shape [..., columns], contiguous; a copy where it is not.

    Raises TypeError for what is no array of a known number format on the CPU, ValueError for
    another last dimension.
    """
    number = _number(x, "x")
    if not x.ndim or x.shape[-1] != columns:
        raise ValueError(f"x has shape {tuple(x.shape)}; its last dimension must be {columns}")
    if is_torch(x):
        tensor = x.detach().contiguous()
        return Operand(tensor, tensor.data_ptr(), number)
    if not (x.flags.c_contiguous and x.flags.aligned):
        x = np.array(x, order="C")
    return Operand(x, x.__array_interface__["data"][0], number)


def new_output(x: Array, shape: tuple[int, ...]) -> Operand:
    """Return fresh memory of ``shape``, of x's kind and number format."""
    out = x.detach().new_empty(shape) if is_torch(x) else np.empty(shape, x.dtype)
    return output(out, shape)


def output(out: Array, shape: tuple[int, ...]) -> Operand:
    """Return the caller's memory for outputs.

    Raises TypeError and ValueError for memory that cannot hold ``shape`` as it is: a copy would
    not reach the caller.
    """
    number = _number(out, "out")
    if tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, the product has {shape}")
    if is_torch(out):
        if not out.is_contiguous():
            raise ValueError("out must be contiguous")
        if out.requires_grad:
            raise ValueError("out must not require a gradient: products have none")
        return Operand(out, out.data_ptr(), number)
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise ValueError("out must be contiguous, aligned and writable")
    return Operand(out, out.__array_interface__["data"][0], number)


def fill_nan(out: Operand, tokens: list[int]) -> None:
    """Write NaN over the outputs of ``tokens``, rows of the flattened product."""
    width = out.array.shape[-1]
    rows = out.array.reshape(math.prod(out.array.shape[:-1]), width)
    for token in tokens:
        rows[token] = float("nan")


def _number(array: Array, what: str) -> int:
    if is_torch(array):
        if array.device.type != "cpu":
            raise TypeError(f"{what} is on {array.device}; the kernel runs on the CPU")
        if array.layout.__repr__() != "torch.strided":
            raise TypeError(f"{what} must be a dense tensor, not {array.layout}")
        name = str(array.dtype).removeprefix("torch.")
    elif isinstance(array, np.ndarray):
        name = array.dtype.name if array.dtype.isnative else f"byte-swapped {array.dtype.name}"
    else:
        raise TypeError(f"{what} must be a NumPy array or torch tensor, not {type(array).__name__}")
    if name not in NUMBERS:
        raise TypeError(f"{what} is {name}; it must be {', '.join(NUMBERS)}")
    return NUMBERS[name]
