"""The journal of a repair in place: all that is to change, on disk before a weight changes.

For each file it holds the bytes that are to change, old and new, and a digest of all the others,
so that whoever finds it can tell the file that it was made for, however much of it was carried
out, from any other. A process that is killed leaves no journal (nothing changed), or a whole one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from weightguard.atomic import atomic_write, sync_folder
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.unfinished import JOURNAL, MAGIC, MAX_HEADER_BYTES, header_text
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.repair.image import Difference, Image, Stored
from weightguard.scan.digest import BLOCK_BYTES, new_hasher
from weightguard.units import counted

_DIGEST_BYTES = 32
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to become of one file.

    ``old_size`` is None where it was missing. ``runs`` are offset and length of the bytes that
    change, by offset, at most a block each; beyond the old end the old bytes count as zeros.
    ``rest`` is the digest of the other bytes up to ``size``, ``tail`` that of those from there on.
    """

    name: str
    old_size: _Count | None
    size: _Count
    runs: tuple[tuple[_Count, _Count], ...]
    rest: _Digest
    tail: _Digest


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Literal["weightguard-journal-v2"]
    weights: str
    files: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Journal:
    """A journal that proved whole, open for reading; ``weights`` are those it restores."""

    file: CheckpointFile
    weights: str
    changes: tuple[Change, ...]
    starts: tuple[int, ...]
    """Where the bytes of each change begin: of each run first the old, then the new ones."""

    def runs(self, number: int) -> Iterator[Difference]:
        """Yield the runs of a change."""
        at = self.starts[number]
        for offset, length in self.changes[number].runs:
            old = self.file.read(at, length, limit=BLOCK_BYTES)
            new = self.file.read(at + length, length, limit=BLOCK_BYTES)
            yield Difference(offset, old, new)
            at += 2 * length


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second repair in place; WeightguardError where one holds it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise WeightguardError(f"cannot open {str(folder)!r}: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WeightguardError(
                f"another repair is at work in {str(folder)!r}. Wait until it has ended."
            ) from error
        except OSError as error:
            raise WeightguardError(
                f"{str(folder)!r} cannot be locked against a second repair: {error.strerror}. "
                "Repair into a new checkpoint (-o)."
            ) from error
        yield
    finally:
        os.close(descriptor)


def write_journal(root: Path, images: Sequence[Image], weights: str) -> None:
    """Put all that is to change in the folder ``root`` on disk, at once.

    Raises OSError, and WeightguardError where the damage is in too many places for a journal.
    """
    changes = tuple(_change(image) for image in images)
    header = msgspec.json.encode(_Header("weightguard-journal-v2", weights, changes))
    if len(header) > MAX_HEADER_BYTES:
        raise WeightguardError(
            "the damage is in too many places for a repair in place: nothing was changed. Repair "
            "into a new checkpoint (-o)."
        )
    hasher = new_hasher("blake3")
    with _needing(root, _journal_bytes(header, changes)), atomic_write(root / JOURNAL) as file:

        def put(data: bytes) -> None:
            hasher.update(data)
            file.write(data)

        put(MAGIC + len(header).to_bytes(8, "little") + header)
        for image in images:
            for difference in image.differences():
                put(difference.old + difference.new)
        file.write(bytes.fromhex(hasher.hexdigest()))


def _journal_bytes(header: bytes, changes: Iterable[Change]) -> int:
    runs = sum(length for change in changes for _, length in change.runs)
    return len(MAGIC) + 8 + len(header) + 2 * runs + _DIGEST_BYTES


@contextlib.contextmanager
def _needing(root: Path, nbytes: int) -> Iterator[None]:
    """Say how many bytes a journal takes where the disk is too full for it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(root).free
        raise WeightguardError(
            f"the journal takes {counted(nbytes, 'byte')}, of which {free:,} are free in "
            f"{str(root)!r}: {error.strerror}. Nothing was changed. Free some space, or repair "
            "into a new checkpoint (-o) on another disk."
        ) from error


def remove_journal(root: Path) -> None:
    """Remove the journal of ``root``. Raises OSError."""
    (root / JOURNAL).unlink()
    sync_folder(root)


@contextlib.contextmanager
def opened_journal(root: Path) -> Iterator[Journal | None]:
    """Yield the journal in ``root``, or None; WeightguardError for one that is damaged."""
    path = root / JOURNAL
    if not os.path.lexists(path):
        yield None
        return
    try:
        file = CheckpointFile(path, path.name)
    except CheckpointError as error:
        raise WeightguardError(f"the journal {str(path)!r} cannot be read: {error}") from error
    try:
        yield _journal(file)
    finally:
        file.close()


def _journal(file: CheckpointFile) -> Journal:
    body = file.size - _DIGEST_BYTES
    try:
        text = header_text(file)
        header = msgspec.json.decode(text, type=_Header)
        start = len(MAGIC) + 8 + len(text)
        starts = []
        for change in header.files:
            starts.append(start)
            start += 2 * _checked_length(change)
        if start != body:
            raise ValueError("its length is wrong")
        if _digest(file, body) != file.read(body, _DIGEST_BYTES, limit=_DIGEST_BYTES):
            raise ValueError("its digest is wrong")
    except (ValueError, CheckpointError) as error:
        raise WeightguardError(
            f"the journal of an unfinished repair, {str(file.path)!r}, is damaged: {error}. "
            "Delete it and repair again: what it did not heal is found anew."
        ) from error
    return Journal(file, header.weights, header.files, tuple(starts))


def _checked_length(change: Change) -> int:
    """Return the number of bytes that change; ValueError where the runs cannot be runs."""
    reached = 0
    for offset, length in change.runs:
        if offset < reached or length > BLOCK_BYTES or offset + length > change.size:
            raise ValueError("it lists bytes that a repair cannot change")
        reached = offset + length
    return sum(length for _, length in change.runs)


def _digest(journal: CheckpointFile, end: int) -> bytes:
    return bytes.fromhex(_digest_of(Stored(journal), [(0, end)]))


def _change(image: Image) -> Change:
    stored = image.stored
    runs = tuple((d.offset, len(d.old)) for d in image.differences())
    old_size = None if stored.file is None else stored.size
    rest, tail = rest_of(stored, runs, image.size), tail_of(stored, image.size)
    return Change(image.name, old_size, image.size, runs, rest, tail)


def rest_of(stored: Stored, runs: Sequence[tuple[int, int]], size: int) -> str:
    """Return the digest of the bytes before ``size`` that are in none of the runs."""
    ends = [0, *(offset + length for offset, length in runs)]
    starts = [*(offset for offset, _ in runs), size]
    return _digest_of(stored, zip(ends, starts, strict=True))


def tail_of(stored: Stored, size: int) -> str:
    """Return the digest of the bytes from ``size`` on."""
    return _digest_of(stored, [(size, stored.size)])


def _digest_of(stored: Stored, ranges: Iterable[tuple[int, int]]) -> str:
    hasher, buffer = new_hasher("blake3"), memoryview(bytearray(BLOCK_BYTES))
    for start, end in ranges:
        for offset in range(start, end, BLOCK_BYTES):
            piece = buffer[: min(BLOCK_BYTES, end - offset)]
            stored.read_into(offset, piece)
            hasher.update(piece)
    return hasher.hexdigest()
