"""Activations and outputs as addresses: arrays of NumPy and tensors of torch on the CPU.

Everything the kernel takes on trust is checked here: number format, shape, strides, alignment,
device and writability.
"""

from __future__ import annotations

import functools
import math
import sys
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
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def activations(x: Array, columns: int) -> Operand:
    """Return x, of shape [..., columns], contiguous; a copy where it is not.

    Raises TypeError for what is no array of a known number format on the CPU, ValueError for
    another last dimension.
    """
    number = _number(x, "x")
    if not x.ndim or x.shape[-1] != columns:
        raise ValueError(f"x has shape {tuple(x.shape)}; its last dimension must be {columns}")
    if is_torch(x):
        if not x.is_contiguous():
            x = x.detach().contiguous()
        return Operand(x, x.data_ptr(), number)
    if not (x.flags.c_contiguous and x.flags.aligned):
        x = np.array(x, order="C")
    return Operand(x, x.__array_interface__["data"][0], number)


def new_output(x: Operand, shape: tuple[int, ...]) -> Operand:
    """Return fresh memory of ``shape``, of x's kind and number format."""
    if is_torch(x.array):
        tensor = x.array.new_empty(shape)
        return Operand(tensor, tensor.data_ptr(), x.number)
    out = np.empty(shape, x.array.dtype)
    return Operand(out, out.__array_interface__["data"][0], x.number)


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
        if type(array).__name__ not in ("Tensor", "Parameter"):
            raise TypeError(f"{what} is a {type(array).__name__}, whose memory is not its own")
        if not array.is_cpu:
            raise TypeError(f"{what} is on {array.device}; the kernel runs on the CPU")
        if array.layout.__repr__() != "torch.strided":
            raise TypeError(f"{what} must be a dense tensor, not {array.layout}")
    elif not isinstance(array, np.ndarray):
        raise TypeError(f"{what} must be a NumPy array or torch tensor, not {type(array).__name__}")
    number = _number_of(array.dtype)
    if number is None:
        raise TypeError(f"{what} is {_name(array.dtype)}; it must be {', '.join(NUMBERS)}")
    return number


@functools.cache  # asked for twice a product, and slower to tell than a small product to compute
def _number_of(dtype: Any) -> int | None:
    return NUMBERS.get(_name(dtype))


def _name(dtype: Any) -> str:
    if not isinstance(dtype, np.dtype):
        return str(dtype).removeprefix("torch.")
    return dtype.name if dtype.isnative else f"byte-swapped {dtype.name}"
