"""Atomic writes: a reader finds the old file or the new one, whole, whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# what tempfile puts between prefix and suffix
_RANDOM = r"[a-z0-9_]{8}"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes ``path`` when the block ends without an exception.

    The bytes are on disk before the name is. Raises OSError; then nothing at ``path`` changed.
    What earlier writers of ``path`` left behind when they were killed is removed.
    """
    descriptor, temporary = _locked_temporary(path)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~umask())
            os.fsync(file.fileno())
            # within the block: until the name is gone its lock says that it is in use
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    remove_abandoned(path.parent, re.escape(path.name))
    sync_folder(path.parent)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove temporary files of targets whose names match ``pattern`` that no writer holds.

    A writer keeps a lock on its file; one that was killed has left both file and no lock.
    """
    ours = re.compile(rf"\.(?:{pattern})\.{_RANDOM}\.tmp")
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if ours.fullmatch(entry.name):
                _remove_unlocked(Path(entry.path))


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """Return a new file beside ``path``, locked for as long as its descriptor is open."""
    while True:
        try:
            descriptor, name = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        except OSError as error:
            error.filename = str(path)  # nobody knows the temporary name
            raise
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # another writer may have taken it for abandoned before the lock was there
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)


def _remove_unlocked(path: Path) -> None:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except OSError:
        pass  # in use, or not ours to remove
    finally:
        os.close(descriptor)


def umask() -> int:
    """Return the mask of permissions that new files go without."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
