"""Checkpoints in remote storage, through fsspec: only the ranges that are asked for are read.

fsspec is the extra ``remote``; it is imported when a URL is opened.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from weightguard.checkpoint.choice import MAX_FOLDER_ENTRIES, WEIGHT_SUFFIXES
from weightguard.checkpoint.container import Checkpoint
from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.checkpoint.names import shown
from weightguard.checkpoint.opening import open_in
from weightguard.errors import CheckpointError, WeightguardError, malformed

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
_FILES = (*(suffix for group in WEIGHT_SUFFIXES for suffix in group), ".json")

USUAL_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "config.json",
)
"""What is looked for where a server does not list its folders."""


def is_remote(place: str) -> bool:
    """Return whether ``place`` is a URL and not a path."""
    return _URL.match(place) is not None


def open_remote(url: str) -> Checkpoint:
    """Open the checkpoint at a URL of fsspec's, of which only headers are read.

    It is a file where it ends like one of a known format or like an index, else a folder.
    Raises CheckpointError where it cannot be read, and WeightguardError without fsspec or for a
    kind of URL that it does not know.
    """
    system, path = _file_system(url)
    # a web server answers for a folder as for a file, so the name must tell them apart
    is_file = path.lower().endswith(_FILES)
    root, name = path.rsplit("/", 1) if is_file else (path.rstrip("/"), None)
    folder = RemoteFolder(system, root)
    if name is not None:
        return open_in(folder, Path(name), named=True)
    folder.list_names()
    return open_in(folder, Path(PurePosixPath(root).name or "."), named=False)


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise WeightguardError(
            f"{shown(url)} needs fsspec: pip install 'weightguard-integrity[remote]'."
        ) from error
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        named = re.search(r"\b[Ii]nstall ([a-z0-9_-]+)", str(error))
        remedy = f"pip install {named[1]}" if named else "Check the URL, or give a local copy"
        raise WeightguardError(f"{shown(url)} cannot be opened: {error}. {remedy}.") from error
    return system, str(path)


def _size(system: Any, path: str) -> int | None:
    """Return a remote file's size, or None where there is no such file."""
    try:
        details = system.info(path)
    except Exception:  # noqa: BLE001 - each storage's library has errors of its own
        return None
    size = details.get("size")
    return size if details.get("type") == "file" and isinstance(size, int) else None


class RemoteFile(CheckpointFile):
    """A remote file, read by ranges. ``fetched`` counts the bytes that were."""

    def __init__(self, system: Any, path: str, name: str):
        size = _size(system, path)
        if size is None:
            raise malformed(
                "WG122",
                f"{shown(name)} is not at {shown(path)}, or its size is not told",
                file=name,
                remedy="Check the URL.",
            )
        self.path, self.name, self.size = Path(name), name, size
        self._system, self._remote = system, path
        self._fd = -1
        self.fetched = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See CheckpointFile; one request for the whole range."""
        end = offset + len(buffer)
        if not buffer:
            return
        try:
            data = self._system.cat_file(self._remote, start=offset, end=end)
        except Exception as error:
            raise self._unread(offset, str(error)[:200]) from error
        self.fetched += len(data)
        if len(data) != len(buffer):
            what = f"{len(data)} bytes came where {len(buffer)} were asked for"
            raise self._unread(offset, f"{what}; the server must honour ranges")
        buffer[:] = data

    def _unread(self, offset: int, why: str) -> CheckpointError:
        words = f"{shown(self.name)} cannot be read at byte {offset}: {why}"
        remedy = "Check the connection, or give a local copy."
        return malformed("WG102", words, file=self.name, offset=offset, remedy=remedy)


class RemoteFolder(Folder):
    """A remote folder; names in it are names of its storage, which has no links."""

    def __init__(self, system: Any, path: str):
        super().__init__(Path(PurePosixPath(path).name or "."))
        self._system, self._path = system, path

    def list_names(self) -> None:
        """Learn the names in the folder, or which of the usual ones are there."""
        try:
            entries = self._system.ls(self._path, detail=False)
        except Exception:  # noqa: BLE001 - a server that lists nothing may hold files all the same
            entries = []
        if len(entries) > MAX_FOLDER_ENTRIES:
            words = f"the folder has more than {MAX_FOLDER_ENTRIES} entries"
            raise malformed("WG116", words, file=".")
        names = {str(e).rstrip("/").rsplit("/", 1)[-1] for e in entries}
        usual = (n for n in USUAL_NAMES if n not in names and self.holds(n))
        self.listed = tuple(sorted({*names, *usual}))

    def holds(self, name: str) -> bool:
        """See Folder."""
        if name in (self.listed or ()):
            return True
        return _size(self._system, f"{self._path}/{name}") is not None

    def open(self, name: str) -> CheckpointFile:
        """See Folder."""
        file = self.peek(name)
        self._opened.append(file)
        return file

    def peek(self, name: str) -> CheckpointFile:
        """See Folder; the caller closes the file."""
        pure = PurePosixPath(name)
        if not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
            raise malformed("WG110", f"the name {shown(name)} leads out of the folder", file=name)
        return RemoteFile(self._system, f"{self._path}/{name}", name)

    def adopt(self, path: Path) -> CheckpointFile:
        """See Folder; ``path`` is a name in the folder."""
        return self.open(path.name)

    def resolve(self, name: str) -> Path:
        """See Folder; remote files have no path, and none that links could lead out of."""
        return self.root.resolve() / name
