"""Weights that modules keep elsewhere than in parameters and buffers, where no guard reaches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from weightguard.guard import Gap

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_DEPTH = 8
"""Levels of containers and states that are followed."""


class HiddenWeights:
    """Finds the hidden weights of one model, and remembers the sizes of packed ones."""

    def __init__(self, root: nn.Module):
        self._root = root
        self._sizes: dict[str, tuple[object, int | None]] = {}

    def gaps(self) -> Iterator[Gap]:
        """Yield what is packed out of reach, and tensors that are attributes of something.

        A tensor that shares memory with a parameter or buffer is no gap.
        """
        seen = {
            _memory(tensor)
            for tensors in (self._root.parameters(), self._root.buffers())
            for tensor in tensors
        }
        for path, module in self._root.named_modules():
            for attribute, value in vars(module).items():
                if attribute not in ("_parameters", "_buffers", "_modules"):
                    name = f"{path}.{attribute}".lstrip(".")
                    yield from self._within(name, value, seen)
            for attribute, parameter in module._parameters.items():
                if parameter is not None:  # which subclasses keep scales and states at
                    name = f"{path}.{attribute}".lstrip(".")
                    for inner, value in vars(parameter).items():
                        yield from self._within(f"{name}.{inner}", value, seen)

    def _within(self, name: str, value: object, seen: set[object]) -> Iterator[Gap]:
        import torch

        for where, found in _walk(name, value, MAX_DEPTH):
            if isinstance(found, torch.ScriptObject):
                yield Gap(where, "unreachable", self._packed(where, found), "packed out of reach")
            elif found.numel() and _memory(found) not in seen:
                seen.add(_memory(found))
                why = "a plain attribute, neither parameter nor buffer"
                yield Gap(where, "unreachable", nbytes_of(found), why)

    def _packed(self, name: str, value: Any) -> int | None:
        """Return the bytes of what a packed object was made of, None where it does not say."""
        known = self._sizes.get(name)
        if known is None or known[0] is not value:
            try:
                state = value.__getstate__()
            except Exception:  # noqa: BLE001 - a class that cannot be saved
                size = None
            else:
                # all at once: those of a state are made anew, and would take each other's address
                parts = [*_tensors(state, MAX_DEPTH)]
                size = sum({_memory(part): nbytes_of(part) for part in parts}.values()) or None
            known = self._sizes[name] = (value, size)
        return known[1]


def nbytes_of(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's elements, those of its parts where it is made of others."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        names, _ = flatten()
        return sum(nbytes_of(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def _memory(tensor: torch.Tensor) -> object:
    """Return what tensors of one memory have in common; meta tensors and wrappers have none."""
    import torch

    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type != "meta"
    address = tensor.untyped_storage().data_ptr() if plain and tensor.layout is torch.strided else 0
    return address or id(tensor)


def _walk(name: str, value: object, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and packed objects in a value: itself, its items, or its attributes."""
    import torch

    if isinstance(value, torch.Tensor | torch.ScriptObject):
        yield name, value
    elif isinstance(value, dict) and depth:
        for key, item in value.items():
            yield from _walk(f"{name}.{key}", item, depth - 1)
    elif isinstance(value, list | tuple) and depth:
        for number, item in enumerate(value):
            yield from _walk(f"{name}.{number}", item, depth - 1)
    elif depth and _is_state(value):
        yield from _walk(name, vars(value), depth - 1)


def _is_state(value: object) -> bool:
    """Return whether a value may be an object that a module keeps its state in."""
    import torch

    if isinstance(value, torch.nn.Module | type) or callable(value):
        return False
    return hasattr(value, "__dict__") and not type(value).__module__.startswith("torch.")


def _tensors(state: object, depth: int) -> Iterator[torch.Tensor]:
    """Yield the tensors in the state of a packed object, which may hold others."""
    import torch

    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, torch.ScriptObject) and depth:
        packed: Any = state
        yield from _tensors(packed.__getstate__(), depth - 1)
    elif isinstance(state, list | tuple) and depth:
        for item in state:
            yield from _tensors(item, depth - 1)
