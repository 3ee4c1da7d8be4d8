"""A golden copy: a checkpoint at rest that damaged live blocks are restored from."""

from __future__ import annotations

import os

import numpy as np

from weightguard.checkpoint import open_checkpoint
from weightguard.errors import CheckpointError
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.casts import CASTS
from weightguard.guard.pieces import origins
from weightguard.guard.schedule import BlockRef
from weightguard.tensor import DTYPES, TensorView


class GoldenCheckpoint:
    """The checkpoint that a model was loaded from, kept open; read when something is damaged."""

    def __init__(self, path: str | os.PathLike[str]):
        """Open ``path``; raises CheckpointError."""
        self._checkpoint = open_checkpoint(path)
        self._views = {
            name: view for view in self._checkpoint.tensors for name in (view.name, *view.aliases)
        }

    def block(self, entry: TensorBaseline, ref: BlockRef) -> bytes | None:
        """See Golden; declared casts are made again, and pieces put together."""
        live = entry.tensor
        if entry.pieces:
            return self._put_together(entry, ref)
        named = (entry.record, live.name, *live.aliases)
        view = next((self._views[name] for name in named if name in self._views), None)
        if view is None or view.elements * live.dtype.block_bytes != live.nbytes:
            return None
        try:
            return read_as(view, live.dtype.name, ref.start, ref.stop)
        except CheckpointError:
            return None

    def _put_together(self, entry: TensorBaseline, ref: BlockRef) -> bytes | None:
        block = bytearray()
        for record, start, stop in origins(entry.pieces, ref.start, ref.stop):
            view = self._views.get(record)
            if view is None or view.dtype != entry.tensor.dtype or stop > view.nbytes:
                return None
            try:
                block += view.read(start, stop)
            except CheckpointError:
                return None
        return bytes(block)

    def origin(self, record: str) -> TensorView | None:
        """See Originals."""
        return self._views.get(record)

    def close(self) -> None:
        """Close the checkpoint's files."""
        self._checkpoint.close()


def read_as(view: TensorView, live: str, start: int, stop: int) -> bytes | None:
    """Return bytes ``start:stop`` of what a tensor becomes in dtype ``live``, None if unknown.

    The range starts and ends on elements of both dtypes.
    """
    if view.dtype.name == live:
        return bytes(view.read(start, stop))
    cast = CASTS.get((view.dtype.name, live))
    if cast is None:
        return None
    to, of = DTYPES[live].block_bytes, view.dtype.block_bytes
    data = np.frombuffer(view.read(start // to * of, stop // to * of), np.uint8)
    return cast(data).tobytes()
