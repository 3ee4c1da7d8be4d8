"""The live tensors of a PyTorch model: parameters and buffers, read and written where they lie."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weightguard.guard import AdapterError, Gap, LiveTensor, Token
from weightguard_integrations.torch.dtypes import dtype_of
from weightguard_integrations.torch.entrance import Entrance

if TYPE_CHECKING:
    import torch
    from torch import nn

COMPILED_PREFIX = "_orig_mod."
"""What ``torch.compile`` puts before the names of the module that it wraps."""


class _Named(NamedTuple):
    name: str
    tensor: torch.Tensor


class TorchAdapter:
    """Parameters and buffers of one module, tied ones once, in CPU memory.

    Reads are views of the live memory, for tensors that are not contiguous copies of the rows
    asked for. Writes go beneath autograd and leave version counters alone.
    """

    def __init__(self, model: nn.Module):
        """Take the root module, compiled or not."""
        self._entrance, self._root = model, root_of(model)
        self._aliases: dict[str, tuple[str, ...]] = {}

    @property
    def root(self) -> nn.Module:
        """The module whose tensors these are, not compiled."""
        return self._root

    def tensors(self) -> Sequence[LiveTensor]:
        """See Adapter."""
        groups: dict[tuple[object, ...], list[_Named]] = defaultdict(list)
        for named in self._named():
            if _obstacle(named.tensor) is None:
                groups[_memory(named.tensor)].append(named)
        self._aliases = {
            group[0].name: tuple(named.name for named in group[1:])
            for group in sorted(_outermost(groups.values()), key=lambda group: group[0].name)
        }
        live = (self.describe(name) for name in self._aliases)
        return [tensor for tensor in live if tensor is not None]

    def describe(self, name: str) -> LiveTensor | None:
        """See Adapter."""
        tensor = self._find(name)
        dtype = None if tensor is None else dtype_of(tensor)
        if tensor is None or dtype is None or _obstacle(tensor) is not None:
            return None
        token = Token(tensor.data_ptr(), _version(tensor), self._variant(name))
        return LiveTensor(name, dtype, tuple(tensor.shape), token, self._aliases.get(name, ()))

    def read(self, name: str, start: int, stop: int) -> memoryview:
        """See Adapter."""
        tensor = self._readable(name)
        if tensor.is_contiguous():
            return _flat(tensor)[start:stop].data
        rows, offset = _rows(tensor, start, stop)
        return _flat(rows.contiguous())[start - offset : stop - offset].data

    def write(self, name: str, start: int, data: bytes) -> None:
        """See Writable."""
        tensor = self._readable(name)
        new = np.frombuffer(data, np.uint8)
        if tensor.is_contiguous():
            _flat(tensor)[start : start + len(data)] = new
            return
        rows, offset = _rows(tensor.data, start, start + len(data))
        copy = rows.contiguous()
        _flat(copy)[start - offset : start - offset + len(data)] = new
        rows.copy_(copy)

    def attach(self, before_step: Callable[[], None]) -> Callable[[], None]:
        """See Attachable and Entrance: compiled or not, before or after."""
        return Entrance(self._entrance, self._root, before_step).remove

    def gaps(self) -> Sequence[Gap]:
        """See Incomplete."""
        found = [
            Gap(named.name, "unreachable", nbytes_of(named.tensor), why)
            for named in self._named()
            if (why := _obstacle(named.tensor)) is not None
        ]
        found += self._packed()
        inductor = sys.modules.get("torch._inductor.config")
        if inductor is not None and getattr(inductor, "freezing", False):
            why = "torch._inductor.config.freezing copies weights into compiled code"
            found.append(Gap("compiled code", "copied", None, why))
        return found

    def _packed(self) -> Iterator[Gap]:
        """Yield weights that modules keep elsewhere than in parameters and buffers."""
        import torch

        for path, module in self._root.named_modules():
            packed = getattr(module, "_packed_params", None)
            if packed is not None and not isinstance(packed, torch.nn.Module):
                yield Gap(path, "unreachable", None, "quantised and packed out of reach")
            for attribute, value in vars(module).items():
                if isinstance(value, torch.Tensor) and value.numel():
                    name = f"{path}.{attribute}".lstrip(".")
                    why = "a plain attribute, neither parameter nor buffer"
                    yield Gap(name, "unreachable", nbytes_of(value), why)

    def _named(self) -> Iterator[_Named]:
        for name, parameter in self._root.named_parameters(remove_duplicate=False):
            yield _Named(name, parameter)
        for name, buffer in self._root.named_buffers(remove_duplicate=False):
            yield _Named(name, buffer)

    def _find(self, name: str) -> torch.Tensor | None:
        """Return what a name means now: modules and their tensors can be exchanged at any time."""
        *path, leaf = name.split(".")
        module: nn.Module | None = self._root
        for part in path:
            module = module and module._modules.get(part)
        if module is None:
            return None
        found = module._parameters.get(leaf)
        return module._buffers.get(leaf) if found is None else found

    def _readable(self, name: str) -> torch.Tensor:
        tensor = self._find(name)
        why = "it is not in the model" if tensor is None else _obstacle(tensor)
        if tensor is None or why is not None:
            raise AdapterError(f"{name[:200]!r} cannot be read: {why}")
        return tensor

    def _variant(self, name: str) -> str:
        """Return which adapters are merged into a tensor, as PEFT's layers tell."""
        *path, _ = name.split(".")
        module: nn.Module | None = self._root
        merged: list[str] = []
        for part in path:
            merged += _merged(module)
            module = module and module._modules.get(part)
        merged += _merged(module)
        return ",".join(merged)


def _merged(module: nn.Module | None) -> Sequence[str]:
    """Return the adapters merged into a module; not by getattr, which is slow at failing."""
    return () if module is None else module.__dict__.get("merged_adapters") or ()


def root_of(model: nn.Module) -> nn.Module:
    """Return the module that a compiled model wraps, or the model itself."""
    wrapped = model._modules.get(COMPILED_PREFIX.rstrip("."))
    return model if wrapped is None else wrapped


def nbytes_of(tensor: torch.Tensor) -> int:
    """Return the size in bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def _obstacle(tensor: torch.Tensor) -> str | None:
    """Return why a tensor cannot be guarded, or None."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}, whose memory is not its own"
    if tensor.device.type == "meta":
        return "a meta tensor: no weights were loaded into it"
    if tensor.device.type != "cpu":
        return f"on {tensor.device.type}, whose memory is not read yet"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return "sparse or quantised"
    if dtype_of(tensor) is None:
        return f"of dtype {tensor.dtype}"
    return None


def _version(tensor: torch.Tensor) -> int:
    """Return how often torch wrote the tensor; it does not count for inference tensors."""
    return 0 if tensor.is_inference() else tensor._version


def _flat(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return the bytes of a contiguous tensor, a view."""
    import torch

    flat: NDArray[np.uint8] = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return flat


def _rows(tensor: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, int]:
    """Return the part along the first axis that bytes ``start:stop`` lie in, and its offset."""
    step = nbytes_of(tensor) // tensor.shape[0]
    first, last = start // step, -(-stop // step)
    return tensor.detach()[first:last], first * step


def _memory(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return what two tensors have in common that are one: memory, type and arrangement."""
    empty = () if tensor.numel() else (id(tensor),)
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), *empty)


def _outermost(groups: Iterable[list[_Named]]) -> Iterator[list[_Named]]:
    """Yield groups of tied tensors without those that are views into another one's memory."""
    reach = 0
    for group in sorted(groups, key=lambda group: (_span(group[0].tensor)[0], -_end(group))):
        if _end(group) > reach or not group[0].tensor.numel():
            yield group
            reach = max(reach, _end(group))


def _end(group: list[_Named]) -> int:
    return _span(group[0].tensor)[1]


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses where a tensor's memory begins and ends."""
    if not tensor.numel():
        return 0, 0
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((size - 1) * stride for size, stride in strides)
    return tensor.data_ptr(), tensor.data_ptr() + extent * tensor.element_size()
