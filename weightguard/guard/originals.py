"""Casts that lost bits: no digest can tell, but the cast can be made again from the original."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from weightguard.errors import CheckpointError
from weightguard.guard.adapter import Adapter, LiveTensor
from weightguard.guard.casts import CASTS, narrower
from weightguard.guard.live import live_blocks
from weightguard.manifest import TensorRecord
from weightguard.scan.digest import DigestAlgorithm, tensor_hasher
from weightguard.tensor import TensorView


@runtime_checkable
class Originals(Protocol):
    """A golden copy that still has the tensors that a cast rounded."""

    def origin(self, record: str) -> TensorView | None:
        """Return the tensor that a record is of, None where the copy has it not."""
        ...


def rounded(tensor: LiveTensor, record: TensorRecord) -> bool:
    """Return whether the live tensor can only be a cast of its record that loses bits."""
    narrow = tensor.dtype.name in narrower(record.dtype)
    return narrow and tensor.shape == record.shape


def cast_again(
    adapter: Adapter, tensor: LiveTensor, record: TensorRecord, original: TensorView
) -> bool:
    """Return whether the original is the attested one, and its cast the live tensor."""
    if (original.dtype.name, original.shape) != (record.dtype, record.shape):
        return False
    cast = CASTS[record.dtype, tensor.dtype.name]
    scale = original.dtype.block_bytes // tensor.dtype.block_bytes
    algorithm: DigestAlgorithm = "sha256" if record.digest.startswith("sha256") else "blake3"
    hasher = tensor_hasher(algorithm, record.dtype, record.shape)
    start = 0
    for live in live_blocks(adapter, tensor):
        stop = start + scale * len(live)
        try:
            data = np.frombuffer(original.read(start, stop), np.uint8)
        except CheckpointError:
            return False
        if not np.array_equal(cast(data), live):
            return False
        hasher.update(data.data)
        start = stop
    return f"{algorithm}:{hasher.hexdigest()}" == record.digest
