"""Files written where they lie, once each has proved to be what the journal was made for.

A file that an interrupted repair has begun to write holds, byte for byte, what was there or what
is to be there, and beside the runs that change what was there. Any other file was put in its
place since, and is left alone.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from weightguard.atomic import sync_folder
from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.checkpoint.hugging_face import blobs_of
from weightguard.checkpoint.names import shown
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.repair.image import Difference, Stored
from weightguard.repair.journal import (
    Journal,
    opened_journal,
    remove_journal,
    rest_of,
    tail_of,
)
from weightguard.units import counted

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ELSEWHERE = "or repair into a new checkpoint (-o)"
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class JournalMisfitError(WeightguardError):
    """A journal is not of the files that lie in its folder; ``files`` are those it is of."""

    def __init__(self, message: str, files: frozenset[str]):
        super().__init__(message)
        self.files = files


class NoRoomError(WeightguardError):
    """The files cannot grow to what they are to become, and are as they were."""


def check_writable(root: Path, names: Iterable[str]) -> None:
    """Raise WeightguardError where a file of the folder ``root`` cannot be written, or made."""
    folder = Folder(root, blobs_of(root))
    for name in names:
        _, file = _opened(folder, name)
        if file is not None:
            file.close()


def apply_journal(root: Path, weights: str) -> bool:
    """Carry out the journal in ``root`` and remove it; return whether there was one.

    Before anything is written, raises JournalMisfitError where it is of other weights or a file
    is not the one it was made for, NoRoomError, and WeightguardError where it is damaged or a file
    cannot be written. Raises OSError; the journal stays then, and applying it again is safe.
    """
    with opened_journal(root) as journal, ExitStack() as stack:
        if journal is None:
            return False
        if journal.weights != weights:
            raise _misfit(
                journal, root, f"is of other weights ({journal.weights})",
                "Finish it with its own manifest, or delete that file.",
            )  # fmt: skip
        folder = Folder(root, blobs_of(root))
        targets = [_Target(journal, n, folder, stack) for n in range(len(journal.changes))]
        pending = [target for target in targets if not target.is_done()]
        for target in pending:
            if not target.fits():
                raise _misfit(
                    journal, root, f"is not of this {shown(target.name)}, which was replaced or "
                    "changed since and is left as it is",
                    "Delete that file and repair again: what it did not heal is found anew.",
                )  # fmt: skip
        _make_room(pending, root)
        for target in pending:
            target.write()
    remove_journal(root)
    return True


def _misfit(journal: Journal, root: Path, why: str, remedy: str) -> JournalMisfitError:
    path = str(root / journal.file.name)
    return JournalMisfitError(
        f"the journal of an unfinished repair, {path!r}, {why}. Nothing was written. {remedy}",
        frozenset(change.name for change in journal.changes),
    )


class _Target:
    """A file of a journal, open for reading and writing; it is closed with ``stack``."""

    def __init__(self, journal: Journal, number: int, folder: Folder, stack: ExitStack):
        self._journal, self._number = journal, number
        self._change = journal.changes[number]
        self.name = self._change.name
        self._path, self._file = _opened(folder, self.name)
        self._stored = Stored(self._file)
        stack.callback(self._close)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def growth(self) -> int:
        """The number of bytes that the file is to be longer by."""
        return max(0, self._change.size - self._stored.size)

    def is_done(self) -> bool:
        """Return whether the file is as long as it is to be and holds all that is to be written."""
        if self._file is None or self._stored.size != self._change.size:
            return False
        return all(self._holds(run.offset, run.new) for run in self._journal.runs(self._number))

    def fits(self) -> bool:
        """Return whether the file is the one the journal was made for, written in part or not."""
        change, stored = self._change, self._stored
        if not self._has_fitting_size():
            return False
        if stored.size > change.size and tail_of(stored, change.size) != change.tail:
            return False
        if rest_of(stored, change.runs, change.size) != change.rest:
            return False
        return all(map(self._is_mix, self._journal.runs(self._number)))

    def _has_fitting_size(self) -> bool:
        old, new = self._change.old_size, self._change.size
        if self._file is None:
            return old is None
        if old is not None and old > new:
            return self._stored.size in (old, new)
        return (old or 0) <= self._stored.size <= new

    def _is_mix(self, run: Difference) -> bool:
        here, old, new = (
            np.frombuffer(data, np.uint8)
            for data in (self._stored.read(run.offset, len(run.old)), run.old, run.new)
        )
        return bool(((here == old) | (here == new)).all())

    def _holds(self, offset: int, data: bytes) -> bool:
        return self._stored.read(offset, len(data)) == data

    def extend(self) -> None:
        """Make the file where it is missing, and as long as it is to be. Raises OSError."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
            self._file = CheckpointFile.adopt(descriptor, self.name)
            os.close(descriptor)
        if self.growth:
            _reserve(self._file.fileno(), self._stored.size, self.growth)

    def retract(self) -> None:
        """Undo ``extend``, whether it was done or not. Raises OSError."""
        if self._stored.file is not None:
            os.ftruncate(self._stored.file.fileno(), self._stored.size)
        elif self._file is not None:
            self._path.unlink()

    def write(self) -> None:
        """Make the file what it is to be, and put it on disk. Raises OSError."""
        assert self._file is not None, "it was extended"
        descriptor = self._file.fileno()
        for run in self._journal.runs(self._number):
            if not self._holds(run.offset, run.new):
                _put(descriptor, run.offset, run.new)
        os.ftruncate(descriptor, self._change.size)
        os.fsync(descriptor)
        sync_folder(self._path.parent)


def _make_room(targets: Sequence[_Target], root: Path) -> None:
    needed = sum(target.growth for target in targets)
    try:
        for target in targets:
            target.extend()
    except OSError as error:
        for target in targets:
            target.retract()
        free = shutil.disk_usage(root).free
        raise NoRoomError(
            f"cannot make the files in {str(root)!r} longer by {counted(needed, 'byte')}, of "
            f"which {free} are free there: {error.strerror}. They are as they were. Free some "
            f"space, {_ELSEWHERE}."
        ) from error


def _reserve(descriptor: int, start: int, length: int) -> None:
    """Make a file longer by blocks that are its own; only look for them where it cannot be told."""
    try:
        os.posix_fallocate(descriptor, start, length)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
            raise
        status = os.fstatvfs(descriptor)
        if status.f_bavail * status.f_frsize < length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _put(descriptor: int, offset: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _opened(folder: Folder, name: str) -> tuple[Path, CheckpointFile | None]:
    """Return the real path of a file of the folder, and the file, None where it is to be made."""
    path = _real_path(folder, name)
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        _check_folder(path.parent)
        return path, None
    except OSError as error:
        raise _unwritable(name, str(error.strerror)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _unwritable(name, "it is no regular file")
        return path, CheckpointFile.adopt(descriptor, name)
    finally:
        os.close(descriptor)


def _real_path(folder: Folder, name: str) -> Path:
    try:
        return folder.resolve(name)
    except CheckpointError as error:
        if error.finding.rule != "WG122" or folder.holds(name):
            raise WeightguardError(
                f"{error}. Nothing was written; give the real path, {_ELSEWHERE}."
            ) from error
    parent = (folder.root / name).parent.resolve()
    if not parent.is_relative_to(folder.root.resolve()):
        raise _unwritable(name, "it would lie outside the checkpoint's folder")
    return parent / Path(name).name


def _check_folder(folder: Path) -> None:
    """Raise WeightguardError where no file can be made in ``folder``, which need not be there."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(str(there), "the permissions forbid it")


def _unwritable(name: str, reason: str) -> WeightguardError:
    return WeightguardError(
        f"{shown(name)} cannot be written: {reason}. Nothing was written; check the permissions, "
        f"{_ELSEWHERE}."
    )
