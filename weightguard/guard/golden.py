"""A golden copy: a checkpoint at rest that damaged live blocks are restored from."""

from __future__ import annotations

import os

from weightguard.checkpoint import open_checkpoint
from weightguard.errors import CheckpointError
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.originals import made_again
from weightguard.guard.schedule import BlockRef
from weightguard.tensor import TensorView


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
        try:
            return made_again(self.origin, entry, ref)
        except CheckpointError:
            return None

    def origin(self, record: str) -> TensorView | None:
        """See Originals."""
        return self._views.get(record)

    def close(self) -> None:
        """Close the checkpoint's files."""
        self._checkpoint.close()
