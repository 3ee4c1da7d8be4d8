"""Reading live tensors whole: private copies of their blocks, or a view as a checkpoint gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightguard.guard.adapter import Adapter, LiveTensor
from weightguard.scan.digest import BLOCK_BYTES, block_count
from weightguard.tensor import TensorView


def live_blocks(adapter: Adapter, tensor: LiveTensor) -> Iterable[NDArray[np.uint8]]:
    """Yield a private copy of each block of a live tensor, valid until the next one."""
    buffer = np.empty(min(BLOCK_BYTES, tensor.nbytes), np.uint8)
    for block in range(block_count(tensor.nbytes)):
        start = block * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, tensor.nbytes)
        piece = buffer[: stop - start]
        piece[:] = np.frombuffer(adapter.read(tensor.name, start, stop), np.uint8)
        yield piece


def live_view(adapter: Adapter, tensor: LiveTensor) -> TensorView:
    """Return a live tensor as a view of canonical bytes."""
    source = _LiveSource(adapter.read, tensor.name)
    return TensorView(tensor.name, tensor.dtype, tensor.shape, "", None, source, tensor.aliases)


@dataclass(frozen=True, slots=True)
class _LiveSource:
    """Reads a live tensor as a ByteSource."""

    read: Callable[[str, int, int], memoryview]
    name: str

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        buffer[:] = self.read(self.name, offset, offset + len(buffer))
