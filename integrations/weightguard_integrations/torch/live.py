"""The live tensors of a PyTorch model: parameters and buffers, read and written where they lie.

Those in a GPU's memory are summed up there (``distant``); bytes of them are copied to the host
where they are sealed against a manifest, and where something is wrong.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weightguard.finding import Finding
from weightguard.guard import AdapterError, Gap, Glance, Hearing, LiveTensor, Token, Witness
from weightguard.tensor import row_layout
from weightguard_integrations.torch.distant import Answer, Devices, capturing
from weightguard_integrations.torch.dtypes import dtype_of
from weightguard_integrations.torch.entrance import Entrance
from weightguard_integrations.torch.hidden import HiddenWeights, nbytes_of
from weightguard_integrations.torch.shards import is_dtensor, kept_shards, local_part
from weightguard_integrations.torch.sights import RUNNING, Sight, version, writes_beside
from weightguard_integrations.torch.swaps import Swaps

if TYPE_CHECKING:
    import torch
    from torch import nn

COMPILED_PREFIX = "_orig_mod."
"""What ``torch.compile`` puts before the names of the module that it wraps."""


class _Named(NamedTuple):
    name: str
    tensor: torch.Tensor


class TorchAdapter:
    """Parameters and buffers of one module, tied ones once, in CPU or GPU memory.

    Reads are views of the live memory, for tensors that are not contiguous or not the CPU's copies
    of the bytes asked for. Writes go beneath autograd and leave version counters alone.
    """

    def __init__(self, model: nn.Module, *, distant: bool = False):
        """Take the root module, compiled or not.

        With ``distant`` CPU memory is treated as a device's, too: for trials where there is none.
        """
        self._entrance, self._root = model, root_of(model)
        self._aliases: dict[str, tuple[str, ...]] = {}
        self._listed: list[LiveTensor] = []
        self._marked: list[tuple[object, ...]] = []
        self._distant, self._devices = distant, Devices()
        self._kept, self._hidden = kept_shards(self._root), HiddenWeights(self._root)
        self._sights: dict[str, tuple[Token, Sight | None]] = {}
        self._swaps = Swaps()

    @property
    def root(self) -> nn.Module:
        """The module whose tensors these are, not compiled."""
        return self._root

    def tensors(self) -> Sequence[LiveTensor]:
        """See Adapter."""
        marks = self._marks()
        if marks != self._marked:
            groups: dict[tuple[object, ...], list[_Named]] = defaultdict(list)
            for named in self._named():
                if _obstacle(named.tensor) is None:
                    groups[_memory(named.tensor)].append(named)
            self._aliases = {
                group[0].name: tuple(named.name for named in group[1:])
                for group in sorted(_outermost(groups.values()), key=lambda group: group[0].name)
            }
            live = (self.describe(name) for name in self._aliases)
            self._listed = [tensor for tensor in live if tensor is not None]
            self._marked = marks
        return self._listed

    def _marks(self) -> list[tuple[object, ...]]:
        """Return all that a list of the tensors follows from: what has equal marks is the same."""
        modules = tuple(self._root.modules())
        self._swaps.take(modules)
        marks: list[tuple[object, ...]] = [tuple(map(self._swaps.told, modules))]
        for name, whole in self.named():
            tensor = local_part(whole)
            if _obstacle(tensor) is None:
                writes = version(whole), version(tensor)
                marks.append((name, id(whole), *_memory(tensor), *writes))
            else:
                marks.append((name, id(whole)))
        return marks

    def describe(self, name: str) -> LiveTensor | None:
        """See Adapter."""
        whole = self._find(name)
        tensor = None if whole is None else local_part(whole)
        dtype = None if tensor is None else dtype_of(tensor)
        if whole is None or tensor is None or dtype is None or _obstacle(tensor) is not None:
            return None
        # torch counts what is written through a DTensor there, and not at its local part
        writes = version(tensor) + (version(whole) if whole is not tensor else 0)
        writes += writes_beside(self._root, name)
        token = Token(tensor.data_ptr(), writes, self._variant(name))
        aliases, distant = self._aliases.get(name, ()), self._distant or _is_distant(tensor)
        return LiveTensor(name, dtype, tuple(tensor.shape), token, aliases, distant)

    def glance(self, name: str, token: Token) -> Glance | None:
        """See Glancing."""
        known, sight = self._sights.get(name, (None, None))
        if known != token:
            now, tensor = self.describe(name), self._find(name)
            if now is None or tensor is None or now.token != token:
                return None
            plain = local_part(tensor) is tensor and name not in self._kept and not now.distant
            plain = plain and not name.endswith(RUNNING)  # whose writes are counted elsewhere
            if plain and now.nbytes and tensor.is_contiguous():
                sight = Sight.of(name, tensor, token)
            else:
                sight = None
            self._sights[name] = token, sight
        return None if sight is None else sight.again(self._root, self._swaps)

    def read(self, name: str, start: int, stop: int) -> memoryview:
        """See Adapter."""
        part = _part(self._readable(name), start, stop)
        return part.cpu().numpy().data

    def sums(
        self, name: str, start: int, stop: int, secret: NDArray[np.uint64]
    ) -> Answer[NDArray[np.uint64]]:
        """See Distant."""
        tensor = self._readable(name)
        dtype = dtype_of(tensor)
        assert dtype is not None
        place = dtype, row_layout(dtype, tuple(tensor.shape)), start
        return self._devices.sums(lambda: _part(tensor, start, stop), tensor, place, secret)

    def fetch(self, name: str, start: int, stop: int) -> Answer[bytes]:
        """See Distant."""
        tensor = self._readable(name)
        return self._devices.fetch(lambda: _part(tensor, start, stop), tensor)

    def write(self, name: str, start: int, data: bytes) -> None:
        """See Writable."""
        import torch

        tensor = self._readable(name)
        new = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if tensor.is_contiguous():
            _flat(tensor.data)[start : start + len(data)].copy_(new)
        else:
            rows, offset = _rows(tensor.data, start, start + len(data))
            copy = rows.contiguous()
            _flat(copy)[start - offset : start - offset + len(data)].copy_(new)
            rows.copy_(copy)
        if _is_distant(tensor):
            torch.cuda.current_stream(tensor.device).synchronize()

    def attach(self, before_step: Callable[[], None]) -> Callable[[], None]:
        """See Attachable and Entrance: compiled or not, before or after."""

        def step() -> None:
            self._swaps.look()
            # what a graph or a trace records would be done again at each replay
            if not capturing():
                before_step()

        return Entrance(self._entrance, self._root, step).remove

    def witness(self, hearing: Hearing) -> Callable[[], None]:
        """See Witness: modules that are witnesses of their own tensors."""
        ends = ExitStack()
        for path, module in self._root.named_modules():
            if isinstance(module, Witness):
                prefix = f"{path}." if path else ""
                ends.callback(module.witness(partial(_told, hearing, prefix)))
        return ends.close

    def gaps(self) -> Sequence[Gap]:
        """See Incomplete."""
        found = [
            Gap(named.name, "unreachable", nbytes_of(named.tensor), why)
            for named in self._named()
            if (why := _obstacle(named.tensor)) is not None
        ]
        found += self._hidden.gaps()
        inductor = sys.modules.get("torch._inductor.config")
        if inductor is not None and getattr(inductor, "freezing", False):
            why = "torch._inductor.config.freezing copies weights into compiled code"
            found.append(Gap("compiled code", "copied", None, why))
        return found

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield parameters and buffers under all their names, DTensors as such."""
        for name, parameter in self._root.named_parameters(remove_duplicate=False):
            yield name, self._shard(name, parameter)
        yield from self._root.named_buffers(remove_duplicate=False)

    def _named(self) -> Iterator[_Named]:
        return (_Named(name, local_part(tensor)) for name, tensor in self.named())

    def _shard(self, name: str, found: torch.Tensor) -> torch.Tensor:
        """Return the shard that FSDP2 shows a gathered copy of; it may exchange shards, too."""
        if name in self._kept and is_dtensor(found):
            self._kept[name] = found
        return self._kept.get(name, found)

    def _find(self, name: str) -> torch.Tensor | None:
        """Return what a name means now: modules and their tensors can be exchanged at any time."""
        *path, leaf = name.split(".")
        module: nn.Module | None = self._root
        for part in path:
            module = module and module._modules.get(part)
        if module is None:
            return None
        found = module._parameters.get(leaf)
        return module._buffers.get(leaf) if found is None else self._shard(name, found)

    def _readable(self, name: str) -> torch.Tensor:
        found = self._find(name)
        tensor = None if found is None else local_part(found)
        why = "it is not in the model" if tensor is None else _obstacle(tensor)
        if tensor is None or why is not None:
            raise AdapterError(f"{name[:200]!r} cannot be read: {why}")
        return tensor

    def _variant(self, name: str) -> str:
        """Return which adapters are merged into a tensor, as PEFT's layers tell."""
        *path, _ = name.split(".")
        module: nn.Module | None = self._root
        merged = self._swaps.told(self._root)
        for part in path:
            module = module and module._modules.get(part)
            merged += () if module is None else self._swaps.told(module)
        return ",".join(merged)


def _told(hearing: Hearing, prefix: str, names: Sequence[str], found: Sequence[Finding]) -> None:
    hearing([prefix + name for name in names], found)


def root_of(model: nn.Module) -> nn.Module:
    """Return the module that a compiled model wraps, or the model itself."""
    wrapped = model._modules.get(COMPILED_PREFIX.rstrip("."))
    return model if wrapped is None else wrapped


def _obstacle(tensor: torch.Tensor) -> str | None:
    """Return why a tensor cannot be guarded, or None."""
    import torch

    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}, whose memory is not its own"
    if tensor.device.type == "meta":
        return "a meta tensor: no weights were loaded into it"
    if tensor.device.type not in ("cpu", "cuda"):
        return f"on {tensor.device.type}, whose memory is not read yet"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return "sparse or quantised"
    if dtype_of(tensor) is None:
        return f"of dtype {tensor.dtype}"
    return None


def _is_distant(tensor: torch.Tensor) -> bool:
    return tensor.device.type != "cpu"


def _part(tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Return bytes ``start:stop`` of a tensor, flat and where it lies; a view if contiguous."""
    if tensor.is_contiguous():
        return _flat(tensor.detach())[start:stop]
    rows, offset = _rows(tensor.detach(), start, stop)
    return _flat(rows.contiguous())[start - offset : stop - offset]


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a contiguous tensor, a view."""
    import torch

    return tensor.reshape(-1).view(torch.uint8)


def _rows(tensor: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, int]:
    """Return the part along the first axis that bytes ``start:stop`` lie in, and its offset."""
    step = nbytes_of(tensor) // tensor.shape[0]
    first, last = start // step, -(-stop // step)
    return tensor[first:last], first * step


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
