"""Repair in place: every byte is in a journal on disk before the first byte of a weight changes.

The journal holds the new bytes, so that applying it twice is the same as once. A process that is
killed leaves no journal (nothing changed), or a whole one (the next repair applies it again).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated, Literal

import msgspec

from weightguard.atomic import atomic_write, sync_folder
from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.checkpoint.hugging_face import blobs_of
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.repair.image import Image
from weightguard.scan.digest import new_hasher

JOURNAL = ".weightguard-repair.journal"
MAGIC = b"weightguard-journal-v1\n"
MAX_HEADER_BYTES = 1 << 28
PIECE_BYTES = 1 << 20
_DIGEST_BYTES = 32
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size: _Count
    writes: tuple[tuple[_Count, _Count], ...]
    """Offset and length of each run of bytes, in the order in which they follow the header."""


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Literal["weightguard-journal-v1"]
    weights: str
    files: tuple[_File, ...]


def is_journal(name: str) -> bool:
    """Return whether a file of a checkpoint's folder is ours and no part of the checkpoint."""
    return name == JOURNAL or (name.startswith("." + JOURNAL + ".") and name.endswith(".tmp"))


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


def write_journal(root: Path, images: Iterable[Image], weights: str) -> None:
    """Put all that is to change in the folder ``root`` on disk, at once. Raises OSError."""
    changed = [image for image in images if image.changed]
    header = msgspec.json.encode(
        _Header(
            "weightguard-journal-v1",
            weights,
            tuple(
                _File(image.name, image.size, tuple((p.offset, p.length) for p in image.patches))
                for image in changed
            ),
        )
    )
    hasher = new_hasher("blake3")
    with atomic_write(root / JOURNAL) as file:

        def put(data: bytes) -> None:
            hasher.update(data)
            file.write(data)

        put(MAGIC + len(header).to_bytes(8, "little") + header)
        for image in changed:
            for patch in image.patches:
                put(image.content(patch))
        file.write(bytes.fromhex(hasher.hexdigest()))


def apply_journal(root: Path, weights: str) -> bool:
    """Carry out the journal in ``root`` and remove it; return whether there was one.

    Raises WeightguardError for a journal that is damaged or belongs to other weights, before
    anything is written, and OSError; the journal stays then, and applying it again is safe.
    """
    path = root / JOURNAL
    if not os.path.lexists(path):
        return False
    with _opened(path) as journal:
        header, at = _header(journal)
        if header.weights != weights:
            raise WeightguardError(
                f"an unfinished repair of other weights ({header.weights}) is in {str(path)!r}. "
                "Finish it with its own manifest, or delete that file."
            )
        folder = Folder(root, blobs_of(root))
        for file in header.files:
            at = _apply(journal, file, at, _writable(folder, file.name))
    path.unlink()
    sync_folder(root)
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[CheckpointFile]:
    try:
        file = CheckpointFile(path, path.name)
    except CheckpointError as error:
        raise WeightguardError(f"the journal {str(path)!r} cannot be read: {error}") from error
    try:
        yield file
    finally:
        file.close()


def _header(journal: CheckpointFile) -> tuple[_Header, int]:
    """Return the header and where the bytes begin, once all of the journal proved whole."""
    fixed = len(MAGIC) + 8
    body = journal.size - _DIGEST_BYTES
    try:
        start = journal.read(0, fixed, limit=fixed)
        length = int.from_bytes(start[len(MAGIC) :], "little")
        if not start.startswith(MAGIC) or length > MAX_HEADER_BYTES or fixed + length > body:
            raise ValueError("it is no journal")
        header = msgspec.json.decode(journal.read(fixed, length, limit=length), type=_Header)
        if fixed + length + sum(n for f in header.files for _, n in f.writes) != body:
            raise ValueError("its length is wrong")
        if _digest(journal, body) != journal.read(body, _DIGEST_BYTES, limit=_DIGEST_BYTES):
            raise ValueError("its digest is wrong")
    except (ValueError, msgspec.DecodeError, CheckpointError) as error:
        raise WeightguardError(
            f"the journal of an unfinished repair, {str(journal.path)!r}, is damaged: {error}. "
            "Delete it and repair again: what it did not heal is found anew."
        ) from error
    return header, fixed + length


def _digest(journal: CheckpointFile, end: int) -> bytes:
    hasher = new_hasher("blake3")
    for offset in range(0, end, PIECE_BYTES):
        hasher.update(journal.read(offset, min(PIECE_BYTES, end - offset), limit=PIECE_BYTES))
    return bytes.fromhex(hasher.hexdigest())


def _writable(folder: Folder, name: str) -> Path:
    """Return the real path of a file of the folder, which need not be there."""
    try:
        return folder.resolve(name)
    except CheckpointError as error:
        if error.finding.rule != "WG122" or os.path.lexists(folder.root / name):
            raise
    parent = (folder.root / name).parent
    parent.mkdir(parents=True, exist_ok=True)
    if not parent.resolve().is_relative_to(folder.root.resolve()):
        raise WeightguardError(f"the journal names {name!r}, outside of its folder.")
    return parent.resolve() / Path(name).name


def _apply(journal: CheckpointFile, file: _File, at: int, path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    with os.fdopen(descriptor, "wb", closefd=True) as target:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise WeightguardError(f"{str(path)!r} is no regular file; nothing was written to it.")
        for offset, length in file.writes:
            for done in range(0, length, PIECE_BYTES):
                piece = journal.read(at + done, min(PIECE_BYTES, length - done), limit=PIECE_BYTES)
                _put(target, offset + done, piece)
            at += length
        os.ftruncate(descriptor, file.size)
        os.fsync(descriptor)
    sync_folder(path.parent)
    return at


def _put(target: IO[bytes], offset: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(target.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written
