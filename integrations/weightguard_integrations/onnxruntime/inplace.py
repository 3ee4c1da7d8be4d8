"""In-place sessions: initializers in buffers of ours, which onnxruntime reads where they lie.

Kernels that pack their weights, and the optimiser where it folds or fuses, take copies at load
and read those; what a run does not read is reported. ``session.disable_prepacking`` keeps most
weights live, and costs speed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from weightguard.checkpoint import Checkpoint
from weightguard.guard import Gap, LiveTensor, Token
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.schedule import BlockRef
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.tensor import TensorView
from weightguard_integrations.onnxruntime.layout import apart
from weightguard_integrations.onnxruntime.mappings import Mapping
from weightguard_integrations.onnxruntime.memory import Memory, Region

_NUMPY = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
    "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16,
    "F32": np.float32, "F64": np.float64,
}  # fmt: skip
_RAW = {
    "BF16": (np.uint16, TensorProto.BFLOAT16),
    "F8_E4M3": (np.uint8, TensorProto.FLOAT8E4M3FN),
    "F8_E5M2": (np.uint8, TensorProto.FLOAT8E5M2),
}
"""Types that NumPy does not know, by the type of equal width and onnx's number."""

_NOT_OURS = "onnxruntime keeps it in memory of its own"


@dataclass(frozen=True, slots=True)
class Placed:
    """A weight in our buffer: bytes ``offset`` on."""

    view: TensorView
    offset: int


class Buffer:
    """All weights that can be given to a session, each on pages of its own.

    An unnamed file that nobody can change holds them, mapped privately: what a run reads of them
    can be seen, and the file is the golden copy.
    """

    def __init__(self, checkpoint: Checkpoint, graph: onnx.ModelProto):
        """Copy the initializers of the main graph out of the verified ``checkpoint``."""
        wanted = {tensor.name for tensor in graph.graph.initializer}
        supported = {*_NUMPY, *_RAW}
        self.placed: list[Placed] = []
        self._values: list[ort.OrtValue] = []
        end = 0
        for view in checkpoint.tensors:
            names = [name for name in (view.name, *view.aliases) if name in wanted]
            if names and view.nbytes and view.dtype.name in supported:
                self.placed.append(Placed(view, apart(end)))
                end = apart(end) + view.nbytes
        self.nbytes = end = max(end, 1)
        self._descriptor = os.memfd_create("weightguard", os.MFD_CLOEXEC)
        os.ftruncate(self._descriptor, end)
        for placed in self.placed:
            for start, data in _blocks(placed.view):
                os.pwrite(self._descriptor, data, placed.offset + start)
        self._map = mmap.mmap(
            self._descriptor, end, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
        )
        self._bytes = np.frombuffer(self._map, np.uint8)
        self.address = int(self._bytes.ctypes.data)

    def give(self, options: ort.SessionOptions) -> None:
        """Have a session of ``options`` read each weight here, under each of its names."""
        for placed in self.placed:
            view = placed.view
            piece = self._bytes[placed.offset : placed.offset + view.nbytes]
            for name in (view.name, *view.aliases):
                self._values.append(_value(piece, view))
                options.add_initializer(name, self._values[-1])

    def mapping(self) -> Mapping:
        """Return where the buffer lies."""
        return Mapping(self.address, self.address + self.nbytes, 0, True)

    def memory(self, checkpoint: Checkpoint, owner: object) -> Memory:
        """Return the weights as they lie in the buffer, and those that do not."""
        regions = {}
        for placed in self.placed:
            view = placed.view
            token = Token(placed.offset)
            live = LiveTensor(view.name, view.dtype, view.shape, token, view.aliases)
            regions[view.name] = Region(live, self.address + placed.offset)
        gaps = tuple(
            Gap(view.name, "unreachable", view.nbytes, _NOT_OURS)
            for view in checkpoint.tensors
            if view.name not in regions and view.nbytes
        )
        return Memory((self, owner), regions, gaps)

    def block(self, entry: TensorBaseline, ref: BlockRef) -> bytes | None:
        """See Golden."""
        for placed in self.placed:
            if placed.view.name == entry.tensor.name:
                return os.pread(self._descriptor, ref.nbytes, placed.offset + ref.start)
        return None

    def close(self) -> None:
        """Give the file back; the mapping lives as long as a session reads it."""
        os.close(self._descriptor)


def _blocks(view: TensorView) -> Iterator[tuple[int, bytes]]:
    for start in range(0, view.nbytes, BLOCK_BYTES):
        yield start, bytes(view.read(start, min(start + BLOCK_BYTES, view.nbytes)))


def _value(piece: NDArray[np.uint8], view: TensorView) -> ort.OrtValue:
    """Return a value that reads ``piece`` where it lies."""
    if view.dtype.name in _RAW:
        kind, number = _RAW[view.dtype.name]
        array = piece.view(kind).reshape(view.shape)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, number)
    return ort.OrtValue.ortvalue_from_numpy(piece.view(_NUMPY[view.dtype.name]).reshape(view.shape))
