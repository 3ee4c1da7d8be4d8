"""Eviction: sealed models that were not used for longest leave the cache, never one in use.

Whoever uses an entry holds a shared lock on its data; an entry that can be locked alone is used by
nobody. It leaves under another name first, so that nobody finds half of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

DEFAULT_LIMIT = 64 << 30
"""Bytes of all entries together."""

DAY = 86_400
UNUSED_DAYS = 30
"""An entry that nobody loaded for as long leaves, too."""

_NAME = re.compile("[0-9a-f]{64}")


class Held:
    """A shared lock on a file, which keeps its entry from being evicted while this object lives."""

    def __init__(self, data: Path):
        """Raises OSError where there is no such file any more."""
        descriptor = _opened(data)
        weakref.finalize(self, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(descriptor), data.lstat()):
            raise FileNotFoundError(errno.ENOENT, "it was replaced")
        os.utime(data.parent)


@dataclass(frozen=True, slots=True)
class _Kept:
    used: float
    nbytes: int
    data: Path


def evict(folder: Path, data_name: str, limit: int, now: float | None = None) -> list[str]:
    """Remove entries of ``folder`` until the others take ``limit`` bytes; return their names.

    Those that were not loaded for UNUSED_DAYS first, then by when they were loaded last. Entries
    in use stay, whatever they take.
    """
    oldest = (time.time() if now is None else now) - UNUSED_DAYS * DAY
    kept = sorted(_entries(folder, data_name), key=lambda entry: entry.used)
    total = sum(entry.nbytes for entry in kept)
    gone = []
    for entry in kept:
        if entry.used >= oldest and total <= limit:
            break
        if _removed(folder, entry.data):
            total -= entry.nbytes
            gone.append(entry.data.parent.name)
    return gone


def _entries(folder: Path, data_name: str) -> list[_Kept]:
    found = []
    for place in folder.iterdir():
        data = place / data_name
        if _NAME.fullmatch(place.name) and not place.is_symlink():
            try:
                used = place.lstat().st_mtime
                nbytes = sum(file.lstat().st_blocks * 512 for file in place.iterdir())
            except OSError:  # it leaves at this moment, or lacks its data: the loader mends that
                continue
            found.append(_Kept(used, nbytes, data))
    return found


def _removed(folder: Path, data: Path) -> bool:
    """Remove the entry of ``data`` if nobody uses it; return whether that was so."""
    try:
        descriptor = _opened(data)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        retired = Path(tempfile.mkdtemp(prefix=".old-", dir=folder))
        try:
            data.parent.rename(retired / data.parent.name)
        finally:
            shutil.rmtree(retired, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _opened(data: Path) -> int:
    return os.open(data, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
