"""Activations and outputs as addresses: arrays of NumPy and tensors of torch on the CPU.

Everything the kernel takes on trust is checked here: number format, shape, strides, alignment,
device and writability.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = Any
"""A ``numpy.ndarray`` or ``torch.Tensor``; torch is never imported here."""

NUMBERS = {"float32": 0, "float16": 1, "bfloat16": 2}
"""The kernel's number formats, by the names that NumPy (with ml_dtypes) and torch give them."""


class Operand(NamedTuple):
    """One array as the kernel takes it; ``array`` keeps the memory alive."""

    array: Array
    address: int
    number: int


class Memory(NamedTuple):
    """Memory that outputs must leave alone: what it holds, and the array that keeps it alive."""

    what: str
    array: NDArray[Any]


def is_torch(array: Array) -> bool:
    """Whether this is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def activations(x: Array, columns: int) -> Operand:
    """Return x, of shape [..., columns], contiguous; a copy where it is not.

    Raises TypeError for what is no array of a known number format on the CPU, ValueError for
    another last dimension, and for tensors whose memory does not hold them.
    """
    number = number_of(x, "x")
    if not x.ndim or x.shape[-1] != columns:
        raise ValueError(f"x has shape {tuple(x.shape)}; its last dimension must be {columns}")
    if is_torch(x):
        if x.is_neg() or not x.is_contiguous():
            x = x.detach().resolve_neg().contiguous()
        if x.data_ptr() % x.element_size():
            x = x.detach().clone()
        return Operand(x, x.data_ptr(), number)
    if not (x.flags.c_contiguous and x.flags.aligned):
        x = np.array(x, order="C")
    return Operand(x, _address(x), number)


def apart(x: Operand, out: Operand) -> Operand:
    """Return x in memory that ``out`` does not reach: a copy where they overlap.

    A product that is computed again must find the activations that it found at first.
    """
    if not _overlap(out, x.address, x.array.nbytes):
        return x
    if is_torch(x.array):
        tensor = x.array.clone()
        return Operand(tensor, tensor.data_ptr(), x.number)
    array = np.array(x.array, order="C")
    return Operand(array, _address(array), x.number)


def require_apart(out: Operand, memories: Iterable[Memory], name: str) -> None:
    """Raise ValueError if ``out`` lies over memory that the matrix ``name`` reads."""
    for what, array in memories:
        if _overlap(out, _address(array), array.nbytes):
            raise ValueError(
                f"out lies over the {what} of {name!r:.200}; name memory of its own for outputs"
            )


def new_output(x: Operand, shape: tuple[int, ...]) -> Operand:
    """Return fresh memory of ``shape``, of x's kind and number format."""
    if is_torch(x.array):
        tensor = x.array.new_empty(shape)
        return Operand(tensor, tensor.data_ptr(), x.number)
    out = np.empty(shape, x.array.dtype)
    return Operand(out, _address(out), x.number)


def output(out: Array, shape: tuple[int, ...]) -> Operand:
    """Return the caller's memory for outputs.

    Raises TypeError and ValueError for memory that cannot hold ``shape`` as it is: a copy would
    not reach the caller.
    """
    number = number_of(out, "out")
    if tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, the product has {shape}")
    if is_torch(out):
        if not out.is_contiguous():
            raise ValueError("out must be contiguous")
        if out.is_neg():
            raise ValueError("out is a negated view of other memory; name memory of its own")
        if out.data_ptr() % out.element_size():
            raise ValueError("out must be aligned")
        if out.requires_grad:
            raise ValueError("out must not require a gradient: products have none")
        return Operand(out, out.data_ptr(), number)
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise ValueError("out must be contiguous, aligned and writable")
    return Operand(out, _address(out), number)


def fill_nan(out: Operand, tokens: list[int]) -> None:
    """Write NaN over the outputs of ``tokens``, rows of the flattened product."""
    width = out.array.shape[-1]
    rows = out.array.reshape(math.prod(out.array.shape[:-1]), width)
    for token in tokens:
        rows[token] = float("nan")


def number_of(array: Array, what: str) -> int:
    """Return the kernel's number format of an array whose elements are in memory here.

    Raises TypeError and ValueError for others, which say that they are ``what``.
    """
    require_values(array, what)
    if is_torch(array) and not array.is_cpu:
        raise TypeError(f"{what} is on {array.device}; the kernel runs on the CPU")
    number = _number(array.dtype)
    if number is None:
        raise TypeError(f"{what} is {_name(array.dtype)}; it must be {', '.join(NUMBERS)}")
    return number


def as_numpy(array: Array, what: str) -> NDArray[Any]:
    """Return an array's values for reading, a tensor's from whatever device; bfloat16 as float32.

    Raises TypeError and ValueError for what has no values.
    """
    require_values(array, what)
    if not is_torch(array):
        return np.asarray(array)
    tensor = array.detach().cpu().resolve_conj().resolve_neg()
    bfloat16 = _name(tensor.dtype) == "bfloat16"
    values: NDArray[Any] = (tensor.float() if bfloat16 else tensor).numpy()
    return values


def require_values(array: Array, what: str) -> None:
    """Raise TypeError and ValueError for what is no array of which all elements are in memory."""
    if is_torch(array):
        _require_memory(array, what)
    elif not isinstance(array, np.ndarray):
        raise TypeError(f"{what} must be a NumPy array or torch tensor, not {type(array).__name__}")
    elif isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{what} is a masked array; fill what is masked")


def _require_memory(tensor: Array, what: str) -> None:
    torch = sys.modules["torch"]
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise TypeError(f"{what} is a {type(tensor).__name__}, whose memory is not its own")
    # one call in place of six: attributes of torch are slow to ask for beside the products
    if torch._C._dispatch_keys(tensor).raw_repr() not in _ordinary():
        _require_dense(tensor, what)
    reach = tensor.numel() if tensor.is_contiguous() else _reach(tensor)
    if not reach:
        return
    nbytes = tensor.untyped_storage().nbytes()
    end = (tensor.storage_offset() + reach) * tensor.element_size()
    if end > nbytes or not tensor.data_ptr():
        raise ValueError(f"{what} has {nbytes} bytes of memory, too few for its shape")


@functools.cache
def _ordinary() -> frozenset[int]:
    """The dispatch keys of dense tensors on the CPU that no transform holds."""
    from torch._C import DispatchKey, DispatchKeySet

    inferred = DispatchKeySet(DispatchKey.CPU).add(DispatchKey.AutocastCPU)
    other = inferred.add(DispatchKey.ADInplaceOrView).add(DispatchKey.AutogradCPU)
    return frozenset((inferred.raw_repr(), other.raw_repr()))


def _require_dense(tensor: Array, what: str) -> None:
    torch = sys.modules["torch"]
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or torch._is_functional_tensor(
        tensor
    ):
        raise TypeError(
            f"{what} belongs to a transform (vmap, grad, functionalize); products have none"
        )
    if tensor.is_meta:
        raise TypeError(f"{what} is on meta: it has no values")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise TypeError(f"{what} must be a dense tensor, not nested or {tensor.layout}")


def _reach(tensor: Array) -> int:
    """Return how many elements beyond its offset a strided tensor's memory must have."""
    if not tensor.numel():
        return 0
    steps: Iterable[tuple[int, int]] = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((n - 1) * step for n, step in steps)


@functools.cache  # asked for twice a product, and slower to tell than a small product to compute
def _number(dtype: Any) -> int | None:
    return NUMBERS.get(_name(dtype))


def _name(dtype: Any) -> str:
    if not isinstance(dtype, np.dtype):
        return str(dtype).removeprefix("torch.")
    return dtype.name if dtype.isnative else f"byte-swapped {dtype.name}"


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _overlap(out: Operand, address: int, nbytes: int) -> bool:
    return address < out.address + out.array.nbytes and out.address < address + nbytes
