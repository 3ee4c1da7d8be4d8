"""New checkpoints written beside old ones: whole under their name, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from weightguard.atomic import sync_folder, umask
from weightguard.checkpoint.choice import MAX_FOLDER_ENTRIES
from weightguard.checkpoint.hugging_face import blobs_of
from weightguard.checkpoint.unfinished import is_journal
from weightguard.errors import WeightguardError
from weightguard.repair.image import Image
from weightguard.scan.digest import BLOCK_BYTES

_RANDOM = r"[a-z0-9_]{8}"
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems without hard links say."""


def refuse_target(target: Path, source: Path) -> None:
    """Raise WeightguardError where a new checkpoint may not be written to ``target``.

    It must not be there, save as an empty folder, and not be the source nor lie inside of it.
    """
    shown = repr(str(target))
    real, old = target.resolve(), source.resolve()
    if real == old or (old.is_dir() and old in real.parents):
        raise WeightguardError(
            f"{shown} is the checkpoint itself or lies inside it. Name another place."
        )
    if real in old.parents:
        raise WeightguardError(f"{shown} holds the checkpoint. Name another place.")
    if not target.parent.is_dir():
        raise WeightguardError(f"cannot write {shown}: {str(target.parent)!r} is no folder.")
    if os.path.lexists(target):
        empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
        if not empty:
            raise WeightguardError(f"{shown} exists. Name another place, or remove it first.")


def refuse_inside(target: Path, source: Path) -> None:
    """Raise WeightguardError where ``target`` lies in the folder of ``source``.

    For an index, or a part of a split model: it stands for several files, which make a folder, and
    a model's folder must not come to hold another.
    """
    folder = source.absolute().parent.resolve()
    if target.resolve().is_relative_to(folder):
        raise WeightguardError(
            f"{str(target)!r} would be a folder inside {str(folder)!r}: {source.name!r} stands for "
            "several files. Name a place outside of it (-o), or give the folder."
        )


@contextlib.contextmanager
def new_checkpoint(target: Path, *, single: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` when the block ends without an exception.

    With ``single`` the one file of that folder that is called like ``target`` becomes it. Its bytes
    must be on disk by then. What killed writers of ``target`` left is removed. Raises OSError, and
    WeightguardError where somebody else wrote ``target`` meanwhile; that is left alone.
    """
    if single and target.is_dir():
        raise WeightguardError(f"{str(target)!r} is a folder, and one file is to be. Name a file.")
    _remove_abandoned(target)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield work
        work.chmod(0o777 & ~umask())
        os.fsync(descriptor)
        _name(work / target.name if single else work, target)
        if single:
            work.rmdir()
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _name(made: Path, target: Path) -> None:
    """Give a file or folder its name, which nothing but an empty folder may bear by now."""
    try:
        if made.is_dir():
            made.rename(target)
            return
        try:
            # unlike a new name, a second one replaces nothing
            target.hardlink_to(made)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            made.rename(target)
        else:
            made.unlink()
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise WeightguardError(
            f"{str(target)!r} was written by somebody else meanwhile, and is left alone. "
            "Name another place, or use what is there."
        ) from error


def _remove_abandoned(target: Path) -> None:
    ours = re.compile(rf"\.{re.escape(target.name)}\.{_RANDOM}\.tmp")
    for entry in list(target.parent.iterdir()):
        if ours.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry, ignore_errors=True)
            except OSError:
                continue  # in use
            finally:
                os.close(descriptor)


def write_images(images: Mapping[str, Image], folder: Path) -> None:
    """Write every file as it will be into ``folder``, and onto the disk."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for name, image in images.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for offset in range(0, image.size, BLOCK_BYTES):
                piece = buffer[: min(BLOCK_BYTES, image.size - offset)]
                image.read_into(offset, piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if image.stored.file is not None:
            path.chmod(stat.S_IMODE(image.stored.file.path.stat().st_mode))
        sync_folder(path.parent)


def copy_rest(source: Path, folder: Path, written: Mapping[str, Image]) -> tuple[list[str], int]:
    """Copy what lies beside the weights of the folder ``source``.

    Returns the names copied, and how many entries were left: links that lead out, pipes, devices.
    """
    places = [source.resolve(), *filter(None, [blobs_of(source)])]
    copied, left = [], 0
    for path in islice(_files(source), MAX_FOLDER_ENTRIES):
        name = str(path.relative_to(source))
        if name in written or is_journal(path.name):
            continue
        real = path.resolve()
        if not real.is_file() or not any(real.is_relative_to(place) for place in places):
            left += 1
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(real, target)
        shutil.copymode(real, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
        copied.append(name)
    return sorted(copied), left


def _files(folder: Path) -> Iterator[Path]:
    for top, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(top) / name for name in sorted(names))
