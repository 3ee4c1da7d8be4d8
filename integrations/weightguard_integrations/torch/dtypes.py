"""Torch's dtypes and ours, by name, so that torch need not be imported to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightguard.tensor import DTYPES, DType

if TYPE_CHECKING:
    import torch

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "complex64": "C64", "complex128": "C128", "bool": "BOOL",
    "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16",
    "uint32": "U32", "int32": "I32", "uint64": "U64", "int64": "I64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip


def dtype_of(tensor: torch.Tensor) -> DType | None:
    """Return a tensor's dtype as a manifest names it, None for one that no manifest holds."""
    return DTYPES.get(_NAMES.get(str(tensor.dtype).removeprefix("torch."), ""))


def torch_dtype(name: str) -> torch.dtype | None:
    """Return torch's dtype of a manifest's dtype name, None where this torch has none."""
    import torch

    theirs = next((theirs for theirs, ours in _NAMES.items() if ours == name), "")
    found: torch.dtype | None = getattr(torch, theirs, None)
    return found
