"""The adapter of a session: live weights at known addresses of this process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from weightguard.guard import AdapterError, Gap, LiveTensor

Form: TypeAlias = Literal["plain", "packed", "source"]


@dataclass(frozen=True, slots=True)
class Region:
    """A live tensor, the address where its bytes lie now, and where they come from.

    The address is no part of the tensor's identity: bytes that another session of the same sealed
    model maps elsewhere are the same, and nobody but damage changes them.

    ``account`` says how its bytes follow from the model's, where that is declared and checked;
    None where they should equal a tensor of the manifest. ``form``: ``plain`` as in the model,
    ``packed`` by a kernel for itself, or the ``source`` that something was packed from. ``read``
    says whether a run of the canary was seen to read it.
    """

    tensor: LiveTensor
    address: int
    account: str | None = None
    writable: bool = True
    form: Form = "plain"
    read: bool = True


@dataclass(frozen=True, slots=True)
class Memory:
    """The live weights of one session; ``owner`` keeps their memory as long as it is held."""

    owner: object
    regions: dict[str, Region] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()


class SessionAdapter:
    """Reads and repairs the weights of a session, which may be rebuilt at any time."""

    def __init__(self, memory: Memory):
        """``memory`` holds the live weights of the session as it is now; set it anew with that."""
        self.memory = memory
        self._hooks: list[Callable[[], None]] = []

    def tensors(self) -> Sequence[LiveTensor]:
        """See Adapter."""
        return [region.tensor for region in self.memory.regions.values()]

    def describe(self, name: str) -> LiveTensor | None:
        """See Adapter."""
        region = self.memory.regions.get(name)
        return None if region is None else region.tensor

    def read(self, name: str, start: int, stop: int) -> memoryview:
        """See Adapter; the view keeps the session's memory."""
        memory = self.memory
        region = self._region(memory, name)
        tensor = region.tensor
        if not 0 <= start <= stop <= tensor.nbytes:
            raise AdapterError(f"{name!r} has {tensor.nbytes} bytes, not {start}:{stop}")
        if start == stop:
            return memoryview(b"")
        pointer = (ctypes.c_ubyte * (stop - start)).from_address(region.address + start)
        pointer.owner = memory.owner  # type: ignore[attr-defined]
        return np.frombuffer(memoryview(pointer), np.uint8).data

    def write(self, name: str, start: int, data: bytes) -> None:
        """See Writable."""
        memory = self.memory
        region = self._region(memory, name)
        if not region.writable:
            raise AdapterError(f"the memory of {name!r} is mapped read-only")
        if start < 0 or start + len(data) > region.tensor.nbytes:
            raise AdapterError(f"{name!r} has {region.tensor.nbytes} bytes")
        ctypes.memmove(region.address + start, data, len(data))

    def attach(self, before_step: Callable[[], None]) -> Callable[[], None]:
        """See Attachable."""
        self._hooks.append(before_step)
        return lambda: self._hooks.remove(before_step)

    def before_run(self) -> None:
        """Call what is attached; what it raises ends the run."""
        for hook in tuple(self._hooks):
            hook()

    def gaps(self) -> Sequence[Gap]:
        """See Incomplete."""
        return self.memory.gaps

    def account(self, name: str) -> str | None:
        """See Accounting."""
        region = self.memory.regions.get(name)
        return None if region is None else region.account

    def _region(self, memory: Memory, name: str) -> Region:
        try:
            return memory.regions[name]
        except KeyError:
            raise AdapterError(f"the session has no weight {name!r:.200}") from None
