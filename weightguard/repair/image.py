"""A file as it will be: what is on disk, with patches over it; nothing is written."""

from __future__ import annotations

import bisect
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from weightguard.checkpoint.files import CheckpointFile
from weightguard.errors import CheckpointError
from weightguard.scan.digest import BLOCK_BYTES

SECTOR_BYTES = 4096
"""Where a disk fails to read, this much is lost at a time."""


class PatchStore:
    """The patches' bytes, in an unnamed temporary file: memory does not grow with the damage."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="weightguard-")  # noqa: SIM115
        self._end = 0

    def append(self, data: bytes | memoryview) -> int:
        """Keep ``data`` and return where it lies. Raises OSError on a full disk."""
        at = self._end
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, self._end)
            rest, self._end = rest[written:], self._end + written
        return at

    def read(self, at: int, length: int) -> bytes:
        """Return ``length`` bytes that were kept at ``at``."""
        return os.pread(self._file.fileno(), length, at)

    def close(self) -> None:
        """Forget everything."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes ``offset`` to ``offset + length`` of a file, for the sake of ``owner``.

    An owner is a tensor's number, or None for the container's own bytes. ``length`` is at most
    a block's.
    """

    offset: int
    length: int
    at: int
    owner: int | None


@dataclass(frozen=True, slots=True)
class Stored:
    """What is on disk of a file, or of none: bytes that are not there read as zeros.

    Bytes that a disk fails to return are zeros too, and so damage like any other. Safe to read
    from several threads.
    """

    file: CheckpointFile | None

    @property
    def size(self) -> int:
        """The size of the file, 0 where it is missing."""
        return 0 if self.file is None else self.file.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on."""
        there = max(0, min(len(buffer), self.size - offset))
        buffer[there:] = bytes(len(buffer) - there)
        if self.file is None or not there:
            return
        try:
            self.file.read_into(offset, buffer[:there])
        except CheckpointError:
            _read_sectors(self.file, offset, buffer[:there])

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on."""
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)


def _read_sectors(file: CheckpointFile, offset: int, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        step = min(SECTOR_BYTES - (offset + done) % SECTOR_BYTES, len(buffer) - done)
        piece = buffer[done : done + step]
        try:
            file.read_into(offset + done, piece)
        except CheckpointError:
            piece[:] = bytes(step)
        done += step


def _sector_below(offset: int) -> int:
    return offset - offset % SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class Difference:
    """Bytes of a file from ``offset`` on: those on disk, and as many that will take their place."""

    offset: int
    old: bytes
    new: bytes


class Image:
    """One file of a checkpoint, ``size`` bytes long, with patches over what is ``stored`` of it.

    Safe to read from several threads while nothing is patched.
    """

    def __init__(self, name: str, file: CheckpointFile | None, size: int, store: PatchStore):
        self.name, self.stored, self.size = name, Stored(file), size
        self._store = store
        self._patches: list[Patch] = []

    @property
    def patches(self) -> tuple[Patch, ...]:
        """The patches, by offset."""
        return tuple(self._patches)

    @property
    def changed(self) -> bool:
        """Whether the file will differ from what is on disk."""
        missing = self.stored.file is None
        return bool(self._patches) or missing or self.size != self.stored.size

    def differences(self) -> Iterator[Difference]:
        """Yield, by offset, the runs of sectors that differ from what is on disk.

        None is longer than a block.
        """
        reached = 0
        for patch in self._patches:
            start, end = max(reached, patch.offset), patch.offset + patch.length
            reached = max(reached, end)
            old, new = self.stored.read(start, reached - start), bytearray(reached - start)
            self.read_into(start, memoryview(new))
            differing = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
            if len(differing):
                # whole sectors: part of one that cannot be read cannot be written either
                first = max(0, _sector_below(start + int(differing[0])) - start)
                last = _sector_below(start + int(differing[-1])) + SECTOR_BYTES - start
                yield Difference(start + first, old[first:last], bytes(new[first:last]))

    def patch(self, offset: int, data: bytes | memoryview, owner: int | None) -> None:
        """Put ``data``, at most a block, at ``offset``."""
        patch = Patch(offset, len(data), self._store.append(data), owner)
        bisect.insort_right(self._patches, patch, key=lambda p: p.offset)

    def drop(self, owner: int | None) -> None:
        """Take back every patch of ``owner``."""
        self._patches = [patch for patch in self._patches if patch.owner != owner]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes that will be at ``offset``."""
        self.stored.read_into(offset, buffer)
        end = offset + len(buffer)
        for patch in self._overlapping(offset, end):
            first, last = max(offset, patch.offset), min(end, patch.offset + patch.length)
            at = patch.at + first - patch.offset
            buffer[first - offset : last - offset] = self._store.read(at, last - first)

    def _overlapping(self, start: int, end: int) -> Iterator[Patch]:
        # no patch is longer than a block
        low = bisect.bisect_right(self._patches, start - BLOCK_BYTES, key=lambda p: p.offset)
        high = bisect.bisect_left(self._patches, end, key=lambda p: p.offset)
        return (p for p in self._patches[low:high] if p.offset + p.length > start)


@dataclass(frozen=True, slots=True)
class ImageRange:
    """The ByteSource of a tensor that is one run of an image."""

    image: Image
    start: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        self.image.read_into(self.start + offset, buffer)
