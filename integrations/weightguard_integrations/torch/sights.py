"""Looking again at tensors that stayed where they were, without torch's views of them.

What was worked out of a tensor once holds as long as the module has the same tensor object there,
at the same address, in the same version and arrangement. That takes a microsecond or two to see,
where a view of its bytes takes twenty.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightguard.guard import Glance, Token
from weightguard_integrations.torch.swaps import MERGED, Swaps

if TYPE_CHECKING:
    import torch
    from torch import nn

RUNNING = ("running_mean", "running_var")
"""Statistics of batch norms."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A tensor, and where its bytes are as long as it is the same; it does not keep it alive.

    ``data`` must be read only while the tensor's storage is held.
    """

    path: tuple[str, ...]
    leaf: str
    tensor: weakref.ref[torch.Tensor]
    kind: tuple[torch.dtype, torch.Size]
    token: Token
    storage_bytes: int
    data: memoryview

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor, token: Token) -> Sight:
        """Take in a contiguous tensor of a CPU."""
        *path, leaf = name.split(".")
        memory = (ctypes.c_ubyte * tensor.nbytes).from_address(token.storage)
        return cls(
            tuple(path),
            leaf,
            weakref.ref(tensor),
            (tensor.dtype, tensor.shape),
            token,
            tensor.untyped_storage().nbytes(),
            memoryview(memory).cast("B").toreadonly(),
        )

    def again(self, root: nn.Module, swaps: Swaps) -> Glance | None:
        """Return the bytes if nothing moved, else None."""
        parts, merged = root.__dict__, swaps.told(root)
        for name in self.path:
            module = parts["_modules"].get(name)
            if module is None:
                return None
            parts = module.__dict__
            if MERGED in parts:
                merged += swaps.told(module)
        tensor = self.tensor()
        leaf = parts["_parameters"].get(self.leaf)
        if tensor is None or tensor is not (
            parts["_buffers"].get(self.leaf) if leaf is None else leaf
        ):
            return None
        storage = tensor.untyped_storage()  # held from here on, it cannot be given back
        token = self.token
        same = (
            tensor.data_ptr() == token.storage
            and version(tensor) == token.version
            and (tensor.dtype, tensor.shape) == self.kind
            and tensor.is_contiguous()
            and storage.nbytes() == self.storage_bytes
            and ",".join(merged) == token.variant
        )
        return Glance(self.data, storage) if same else None


def version(tensor: torch.Tensor) -> int:
    """Return how often torch wrote the tensor; it does not count for inference tensors."""
    return 0 if tensor.is_inference() else tensor._version


def writes_beside(root: nn.Module, name: str) -> int:
    """Return how often torch wrote a tensor without counting it there.

    Batch norms in training write their running statistics so, and count the batch beside them.
    """
    path, _, leaf = name.rpartition(".")
    if leaf not in RUNNING:
        return 0
    batches = root.get_submodule(path)._buffers.get("num_batches_tracked")
    return 0 if batches is None else version(batches)
