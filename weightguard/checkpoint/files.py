"""Opening files of an untrusted checkpoint: regular files, inside the folder, bounded reads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

from weightguard.checkpoint.names import shown
from weightguard.checkpoint.private import private_copy
from weightguard.errors import CheckpointError, WeightguardError, malformed


class CheckpointFile:
    """A regular file opened read-only, read at explicit offsets, safe to share by threads.

    ``name`` is relative to the checkpoint and is what findings show. Each file keeps one
    descriptor for as long as its checkpoint is open; running out of them is a WeightguardError
    that says how to raise the limit, for it says nothing about the checkpoint.
    """

    def __init__(self, path: Path, name: str):
        self.path = path
        self.name = name
        self._fd = _open_regular(path, name)
        self.size = os.fstat(self._fd).st_size

    @classmethod
    def adopt(cls, descriptor: int, name: str) -> Self:
        """Return a file over a duplicate of an open descriptor, such as an unnamed file's."""
        file = cls.__new__(cls)
        file.path, file.name = Path(name), name
        file._fd = os.dup(descriptor)
        file.size = os.fstat(file._fd).st_size
        return file

    def copy_privately(self) -> None:
        """Read from a private copy from now on: what happens to the file shows no more.

        Raises CheckpointError where the file ends early, WeightguardError where memory does.
        """
        copy = private_copy(self.name, self.size, self.read_into)
        os.close(self._fd)
        self._fd = copy

    def fileno(self) -> int:
        """Return the descriptor that is read; it is this object's to close."""
        return self._fd

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on; CheckpointError where they end."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:] if done else buffer], offset + done)
            except OSError as error:
                raise malformed(
                    "WG102",
                    f"{shown(self.name)} cannot be read at byte {offset + done}: {error.strerror}",
                    file=self.name,
                    offset=offset + done,
                    remedy="Check the disk and fetch the file again.",
                ) from error
            if count == 0:
                raise malformed(
                    "WG102",
                    f"{shown(self.name)} ends at byte {offset + done}, "
                    f"{len(buffer) - done} bytes early",
                    file=self.name,
                    offset=offset + done,
                )
            done += count

    def read(self, offset: int, length: int, *, limit: int) -> bytes:
        """Return ``length`` bytes from ``offset``; refuses more than ``limit`` or than the file."""
        if length > limit:
            raise malformed(
                "WG116",
                f"{shown(self.name)} asks for {length} bytes at byte {offset}, "
                f"above the limit of {limit}",
                file=self.name,
                offset=offset,
            )
        if offset < 0 or offset + length > self.size:
            raise malformed(
                "WG102",
                f"{shown(self.name)} has {self.size} bytes but {offset + length} are needed",
                file=self.name,
                offset=self.size,
            )
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def status(self) -> os.stat_result:
        """Return what the system says of the open file now."""
        return os.fstat(self._fd)

    def close(self) -> None:
        """Close the descriptor; reading afterwards fails."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class FileRange:
    """The ByteSource of a tensor that is one contiguous run of a file."""

    file: CheckpointFile
    start: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        self.file.read_into(self.start + offset, buffer)


@dataclass(slots=True)
class Folder:
    """The folder that a checkpoint may read from; every name is resolved inside it.

    ``blobs`` is the sibling folder of a Hugging Face cache snapshot, the only place outside
    that a link may lead to. ``private``: files are copied before the first of their bytes is
    used, so that all that is ever learned of one is learned of the same bytes.
    """

    root: Path
    blobs: Path | None = None
    listed: tuple[str, ...] | None = None
    """The names in a folder that cannot be listed by its path."""
    private: bool = False
    _opened: list[CheckpointFile] = field(default_factory=list)

    def open(self, name: str) -> CheckpointFile:
        """Open the file ``name`` of the folder.

        Raises CheckpointError when the name or a link leads out of the folder, or when it is
        no regular file.
        """
        real = self.resolve(name)
        opened = self._take(real, name)
        # a folder on the way may have become a link in between
        if self.resolve(name) != real:
            raise _swapped(name)
        return opened

    def peek(self, name: str) -> CheckpointFile:
        """Open a file that is no part of the checkpoint; the caller closes it. See ``open``."""
        return CheckpointFile(self.resolve(name), name)

    def release(self, file: CheckpointFile) -> None:
        """Close a file that turned out to be no part of the checkpoint."""
        self._opened.remove(file)
        file.close()

    def adopt(self, path: Path) -> CheckpointFile:
        """Open a file that the user named, wherever its path's links lead."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise _unopened(path.name, error, "Check the path.") from error
        return self._take(real, path.name)

    def _take(self, real: Path, name: str) -> CheckpointFile:
        opened = CheckpointFile(real, name)
        self._opened.append(opened)
        if self.private:
            opened.copy_privately()
        return opened

    def resolve(self, name: str) -> Path:
        """Return the real path of ``name``, refusing every way out of the folder.

        Raises CheckpointError. A name that could forge a line of output is no reason: a file the
        user names may have one too, so that both ways end in the same finding.
        """
        pure = PurePosixPath(name)
        if not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
            raise _escape(name, f"the name {shown(name)} leads out of the checkpoint's folder")
        path = self.root / pure
        try:
            real = path.resolve(strict=True)
            inside = any(real.is_relative_to(place.resolve()) for place in self._places())
        except (OSError, RuntimeError, ValueError) as error:
            remedy = "Fetch the missing file, or give the checkpoint's folder."
            raise _unopened(name, error, remedy) from error
        if not inside:
            target = str(real)
            raise _escape(
                name, f"{shown(name)} leads to {shown(target)}, outside the checkpoint's folder"
            )
        return real

    def holds(self, name: str) -> bool:
        """Return whether there is an entry ``name``, were it a dangling link."""
        return os.path.lexists(self.root / name)

    def _places(self) -> Sequence[Path]:
        return (self.root,) if self.blobs is None else (self.root, self.blobs)

    @property
    def opened(self) -> tuple[CheckpointFile, ...]:
        """The files opened so far, in order."""
        return tuple(self._opened)

    def close(self) -> None:
        """Close every file opened through this folder."""
        for file in self._opened:
            file.close()


def _escape(name: str, message: str) -> CheckpointError:
    return malformed("WG110", message, file=name)


def _swapped(name: str) -> CheckpointError:
    return malformed(
        "WG111",
        f"{shown(name)} was replaced while it was opened",
        file=name,
        remedy="Audit a folder that only you can write.",
    )


def _unopened(name: str, error: Exception, remedy: str) -> CheckpointError:
    reason = getattr(error, "strerror", None) or "its links go round in a circle"
    if isinstance(error, ValueError):
        reason = "no file can have this name"
    return malformed("WG122", f"{shown(name)} cannot be opened: {reason}", file=name, remedy=remedy)


def _open_regular(path: Path, name: str) -> int:
    # O_NONBLOCK: opening a FIFO must not wait for a writer
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
    try:
        expected = path.lstat()
        if not stat.S_ISREG(expected.st_mode):
            raise malformed("WG111", f"{shown(name)} is not a regular file", file=name)
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise WeightguardError(
                f"{shown(name)} is one file too many for this process to hold open; "
                "raise the limit, for example with 'ulimit -n 65536'"
            ) from error
        remedy = "Check that the file exists and is readable."
        raise _unopened(name, error, remedy) from error
    if not os.path.samestat(expected, os.fstat(fd)):
        os.close(fd)
        raise _swapped(name)
    return fd
