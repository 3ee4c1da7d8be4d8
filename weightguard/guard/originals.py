"""Originals: attested tensors as a golden copy still has them, and what was made of them.

A cast that lost bits no digest can tell, but the cast can be made again. So can any other cast, the
pieces of a fused tensor, and the rows or columns that a rank holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from weightguard.errors import CheckpointError, WeightguardError
from weightguard.guard.adapter import Adapter, LiveTensor
from weightguard.guard.baseline import Key, TensorBaseline
from weightguard.guard.casts import CASTS, rounds
from weightguard.guard.live import live_blocks
from weightguard.guard.pieces import origins
from weightguard.guard.schedule import BlockRef
from weightguard.manifest import Manifest, TensorRecord
from weightguard.scan.digest import BLOCK_BYTES, DigestAlgorithm, tensor_hasher
from weightguard.tensor import DTYPES, TensorView

Origin: TypeAlias = Callable[[str], TensorView | None]
"""Gives the tensor that a record is of, None where there is none."""


@runtime_checkable
class Originals(Protocol):
    """A golden copy that still has the tensors that live ones were made of."""

    def origin(self, record: str) -> TensorView | None:
        """Return the tensor that a record is of, None where the copy has it not."""
        ...


def rounded(tensor: LiveTensor, record: TensorRecord) -> bool:
    """Return whether the live tensor can only be a cast of its record that loses bits."""
    return rounds(record.dtype, tensor.dtype.name) and tensor.shape == record.shape


def cast_again(
    adapter: Adapter, tensor: LiveTensor, record: TensorRecord, original: TensorView
) -> bool | None:
    """Return whether the live tensor is the cast of the original.

    None where the original is not the attested one, so that it tells nothing.
    """
    if (original.dtype.name, original.shape) != (record.dtype, record.shape):
        return None
    cast = CASTS[record.dtype, tensor.dtype.name]
    to, of = tensor.dtype.block_bytes, original.dtype.block_bytes
    algorithm: DigestAlgorithm = "sha256" if record.digest.startswith("sha256") else "blake3"
    hasher = tensor_hasher(algorithm, record.dtype, record.shape)
    start, same = 0, True
    for live in live_blocks(adapter, tensor):
        stop = start + len(live) // to * of
        try:
            data = np.frombuffer(original.read(start, stop), np.uint8)
        except CheckpointError:
            return None
        same = same and np.array_equal(cast(data), live)
        hasher.update(data.data)
        start = stop
    return same if f"{algorithm}:{hasher.hexdigest()}" == record.digest else None


def made_again(origin: Origin, entry: TensorBaseline, ref: BlockRef) -> bytes | None:
    """Return what a live block should hold, made of originals; None where they do not suffice.

    From the pieces that a tensor was declared to be made up of, else from its record. Raises
    CheckpointError.
    """
    live = entry.tensor
    if entry.pieces:
        return _put_together(origin, entry, ref)
    named = (entry.record, live.name, *live.aliases)
    view = next((view for name in named if name and (view := origin(name)) is not None), None)
    if view is None or view.elements * live.dtype.block_bytes != live.nbytes:
        return None
    return _read_as(view, live.dtype.name, ref.start, ref.stop)


def _put_together(origin: Origin, entry: TensorBaseline, ref: BlockRef) -> bytes | None:
    block = bytearray()
    for record, start, stop in origins(entry.pieces, ref.start, ref.stop):
        view = origin(record)
        if view is None or view.dtype != entry.tensor.dtype or stop > view.nbytes:
            return None
        block += view.read(start, stop)
    return bytes(block)


def _read_as(view: TensorView, live: str, start: int, stop: int) -> bytes | None:
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


class Proved:
    """The originals that have the cryptographic digests of their records.

    Each is read whole once for that, and its blocks are digested under the process's key: what is
    read later has to have these digests, so that nothing changes between proof and use.
    """

    def __init__(self, originals: Originals, manifest: Manifest, key: Key):
        self._originals, self._manifest, self._key = originals, manifest, key
        self._views: dict[str, TensorView | None] = {}

    def origin(self, record: str) -> TensorView | None:
        """See Originals; None also for what is not the attested tensor. Raises CheckpointError."""
        if record not in self._views:
            self._views[record] = self._prove(record)
        return self._views[record]

    def _prove(self, name: str) -> TensorView | None:
        record, view = self._manifest.document.tensors.get(name), self._originals.origin(name)
        if record is None or view is None:
            return None
        if (view.dtype.name, view.shape) != (record.dtype, record.shape):
            return None
        algorithm = self._manifest.document.digest_algorithm
        hasher, digests = tensor_hasher(algorithm, record.dtype, record.shape), list[bytes]()
        for start in range(0, view.nbytes, BLOCK_BYTES):
            data = view.read(start, min(start + BLOCK_BYTES, view.nbytes))
            hasher.update(memoryview(data))
            digests.append(self._key.digest(memoryview(data)))
        if f"{algorithm}:{hasher.hexdigest()}" != record.digest:
            return None
        return replace(view, source=_ProvedSource(view, digests, self._key))


class ChangedError(WeightguardError):
    """A golden copy is another one than a moment ago."""


class _ProvedSource:
    """Reads a tensor by its blocks, the last of which it keeps."""

    def __init__(self, view: TensorView, digests: list[bytes], key: Key):
        self._view, self._digests, self._key = view, digests, key
        self._number, self._block = -1, bytearray()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource; raises ChangedError for bytes that are not the proved ones."""
        while buffer:
            number, within = divmod(offset, BLOCK_BYTES)
            self._turn_to(number)
            part = self._block[within : within + len(buffer)]
            buffer[: len(part)] = part
            buffer, offset = buffer[len(part) :], offset + len(part)

    def _turn_to(self, number: int) -> None:
        if number == self._number:
            return
        start = number * BLOCK_BYTES
        block = self._view.read(start, min(start + BLOCK_BYTES, self._view.nbytes))
        if self._key.digest(memoryview(block)) != self._digests[number]:
            raise ChangedError(f"{self._view.name[:200]!r} changed while it was read")
        self._number, self._block = number, block
