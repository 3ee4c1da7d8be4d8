"""Tensors in a GPU's memory: summed up where they lie, on a stream of their own.

Nothing here waits for the device: what was asked for arrives in pinned memory, and an event says
when. A sum comes after what the asking thread's stream was given before, so that it sees a write
that is queued; it goes on beside what is given to that stream later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from weightguard.tensor import DType, RowLayout
from weightguard_integrations.torch import row_sums

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """See Promised. ``source`` is kept alive until the answer is there."""

    source: torch.Tensor
    host: torch.Tensor
    arrived: Any
    convert: Callable[[torch.Tensor], T]

    def ready(self) -> bool:
        """See Promised."""
        return self.arrived is None or bool(self.arrived.query())

    def result(self) -> T:
        """See Promised."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.convert(self.host)


class Devices:
    """A stream and a copy of the secret numbers on each device. Safe to share between threads."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}
        self._secrets: dict[torch.device, tuple[NDArray[np.uint64], torch.Tensor]] = {}

    def sums(
        self,
        part: Callable[[], torch.Tensor],
        source: torch.Tensor,
        place: tuple[DType, RowLayout, int],
        secret: NDArray[np.uint64],
    ) -> Answer[NDArray[np.uint64]]:
        """Ask for the sums of the bytes that ``part`` gives, from a block's beginning on.

        ``place`` is the dtype and layout of their tensor ``source``, and the byte where they begin.
        """
        dtype, layout, start = place
        with self._aside(source.device) as stream:
            words = row_sums.words_of(part(), dtype.word_bytes)
            numbers = self._secret(source.device, secret)
            sums = _part_sums(source.device.type)(words, dtype, layout, start, numbers)
            return _answer(source, sums, stream, lambda host: host.numpy().view(np.uint64))

    def fetch(self, part: Callable[[], torch.Tensor], source: torch.Tensor) -> Answer[bytes]:
        """Ask for the bytes that ``part`` gives of the tensor ``source``."""
        with self._aside(source.device) as stream:
            return _answer(source, part(), stream, lambda host: host.numpy().tobytes())

    @contextmanager
    def _aside(self, device: torch.device) -> Iterator[Any]:
        """Work on a stream beside the caller's, after what the caller's was given by now."""
        if device.type == "cpu":
            yield None
            return
        cuda = _cuda()
        if device not in self._streams:
            self._streams[device] = cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(cuda.current_stream(device))
        with cuda.stream(stream):
            yield stream

    def _secret(self, device: torch.device, secret: NDArray[np.uint64]) -> torch.Tensor:
        import torch

        known = self._secrets.get(device)
        if known is None or known[0] is not secret:
            numbers = torch.from_numpy(secret.view(np.int64).copy()).to(device)
            known = self._secrets[device] = (secret, numbers)
        return known[1]


def _answer(
    source: torch.Tensor,
    found: torch.Tensor,
    stream: Any,
    convert: Callable[[torch.Tensor], T],
) -> Answer[T]:
    import torch

    if stream is None:
        return Answer(source, found.clone(), None, convert)
    host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
    host.copy_(found, non_blocking=True)
    arrived = _cuda().Event()
    arrived.record(stream)
    return Answer(source, host, arrived, convert)


@functools.cache
def _part_sums(device_type: str) -> Callable[..., torch.Tensor]:
    """Return what sums up on a kind of device: Triton's kernel where there is one, else torch."""
    if device_type == "cuda":
        from torch.utils._triton import has_triton

        if has_triton():
            from weightguard_integrations.torch import row_sums_triton

            return row_sums_triton.part_sums
    return row_sums.part_sums


def capturing() -> bool:
    """Return whether what the calling thread does is recorded as a CUDA graph or by torch.jit."""
    cuda = _cuda()
    return tracing() or bool(cuda.is_available() and cuda.is_current_stream_capturing())


def tracing() -> bool:
    """Return whether torch.jit records what the calling thread does."""
    import torch

    # torch.jit has no types
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return traced


def _cuda() -> Any:
    """Return torch.cuda, parts of which have no types."""
    import torch

    return torch.cuda
