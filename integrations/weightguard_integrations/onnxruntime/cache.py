"""The private folder of sealed models: one folder an entry, made once, whole or not at all.

An entry is what onnxruntime made of one verified model on one kind of processor. Whoever may
write there could change what runs, so the folder must belong to this user alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from weightguard.errors import WeightguardError
from weightguard.private import make_private, user_cache
from weightguard.tensor import DTYPES
from weightguard_integrations.onnxruntime.eviction import DEFAULT_LIMIT, Held, evict
from weightguard_integrations.onnxruntime.layout import DATA_NAME, Extent

SCHEMA = "weightguard-sealed-onnx-v1"
GRAPH_NAME = "graph.onnx"
ENTRY_NAME = "entry.json"
CANARY_NAME = "canary.npz"

MAX_ENTRY_BYTES = 256 << 20
MAX_GRAPH_BYTES = (1 << 31) - 1


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was sealed, of what, and how that was shown.

    ``model`` stands for the content of the model's files; ``weights`` is the identity of the
    manifest that they were compared with, None without one. ``graph`` and ``canary`` are the
    SHA-256 of those files of the entry; ``outputs`` the canary's, of the plain session and the
    sealed one alike. ``folded`` counts weights, and their bytes, that no live one is named after.
    """

    schema: str
    key: str
    model: str
    weights: str | None
    runtime: str
    processor: str
    options: dict[str, str]
    graph: str
    canary: str
    outputs: tuple[str, ...]
    extents: tuple[Extent, ...]
    inline: tuple[tuple[str, int], ...]
    nested: bool
    folded: tuple[int, int]


class StaleEntry(Exception):  # noqa: N818 - not an error: the entry is made again
    """An entry that is not what it should be; the message says why."""


def key_of(parts: Mapping[str, object]) -> str:
    """Return the name of the entry for a model, a runtime, a processor and options."""
    canonical = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(f"{SCHEMA}\0{canonical}".encode()).hexdigest()


def default_folder() -> Path:
    """Return the user's folder for sealed models."""
    return user_cache("onnxruntime")


class Cache:
    """Entries in one folder, of ``limit`` bytes together, but for those in use."""

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT):
        """Make the folder where it is missing; raise WeightguardError where it is not private."""
        self.folder, self.limit = folder, limit
        make_private(folder, "Give cache= another one, or mode='inplace'")

    def obtain(
        self, key: str, build: Callable[[Path], None], load: Callable[[Path], object]
    ) -> None:
        """``load`` the entry of ``key``, after it was built where it is missing or stale.

        One process builds, others wait for it. ``load`` raises StaleEntry for an entry that must
        be made again. Raises WeightguardError where it cannot be written, or is stale at once.
        """
        place = self.folder / key
        if not place.is_dir() or not _loaded(place, load):
            with self._locked(key):
                if not place.is_dir() or not _loaded(place, load):
                    self._build(place, build)
                    load(place)
                    self._evict()

    def _evict(self) -> None:
        try:
            evict(self.folder, DATA_NAME, self.limit)
        except OSError as error:
            raise _unusable(self.folder, error) from error

    def _build(self, place: Path, build: Callable[[Path], None]) -> None:
        try:
            work = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
            try:
                build(work)
                for file in work.iterdir():
                    _sync(file)
                retired = Path(tempfile.mkdtemp(prefix=".old-", dir=self.folder))
                try:
                    if os.path.lexists(place):
                        place.rename(retired / place.name)
                    work.rename(place)
                    _sync(self.folder)
                finally:
                    shutil.rmtree(retired, ignore_errors=True)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        except OSError as error:
            raise _unusable(self.folder, error) from error

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        try:
            descriptor = os.open(
                self.folder / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )  # fmt: skip
        except OSError as error:
            raise _unusable(self.folder, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._sweep()
            yield
        finally:
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what builders of a day ago left behind when they were killed."""
        for left in (*self.folder.glob(".new-*"), *self.folder.glob(".old-*")):
            try:
                old = left.lstat().st_mtime < os.stat(self.folder).st_mtime - 86_400  # noqa: PTH116
            except OSError:
                continue
            if old:
                shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def own_name(self, place: Path, *, copied: bool) -> Iterator[Path]:
        """Yield a folder in which the entry's data has a name that nobody else opens it by.

        The very file where it is not ``copied``. Raises StaleEntry, and WeightguardError.
        """
        data = place / DATA_NAME
        _require_private(data)
        try:
            folder = Path(tempfile.mkdtemp(prefix=".new-", dir=self.folder))
            try:
                (shutil.copyfile if copied else os.link)(data, folder / DATA_NAME)
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise _unusable(self.folder, error) from error


def held(place: Path) -> Held:
    """Return what keeps an entry from being evicted while it lives; raises StaleEntry."""
    try:
        return Held(place / DATA_NAME)
    except OSError as error:
        raise StaleEntry(f"{DATA_NAME} cannot be opened: {error.strerror}") from error


def read_entry(place: Path, stated: Mapping[str, object]) -> Entry:
    """Return the record of an entry, whose fields are as ``stated``; raises StaleEntry."""
    try:
        entry = msgspec.json.decode(read_private(place / ENTRY_NAME, MAX_ENTRY_BYTES), type=Entry)
    except msgspec.DecodeError as error:
        raise StaleEntry(f"its record is damaged: {error}") from error
    for field, wanted in stated.items():
        if getattr(entry, field) != wanted:
            raise StaleEntry(f"its record is of another {field}")
    for extent in entry.extents:
        dtype = DTYPES.get(extent.dtype)
        if dtype is None or dtype.nbytes(math.prod(extent.shape)) != extent.nbytes:
            raise StaleEntry("its record is damaged: a size that cannot be")
    return entry


def read_private(path: Path, limit: int, sha256: str | None = None) -> bytes:
    """Return the content of a regular file that only this user can write; raises StaleEntry.

    With ``sha256``, only if that is its digest.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise StaleEntry(f"{path.name} cannot be opened: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise StaleEntry(f"{path.name} is no file of this user's own")
        if stat.S_IMODE(found.st_mode) & 0o022 or found.st_size > limit:
            raise StaleEntry(f"{path.name} is too large, or others can write it")
        data = file.read(limit)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise StaleEntry(f"{path.name} is not what was sealed")
    return data


def _require_private(path: Path) -> None:
    try:
        found = path.lstat()
    except OSError as error:
        raise StaleEntry(f"{path.name} cannot be read: {error.strerror}") from error
    own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
    if not own or stat.S_IMODE(found.st_mode) & 0o022:
        raise StaleEntry(f"{path.name} is no file that this user alone can write")


def write_private(path: Path, data: bytes) -> str:
    """Write a file that only this user can read; return its SHA-256 in hex."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def _loaded(place: Path, load: Callable[[Path], object]) -> bool:
    try:
        load(place)
    except StaleEntry:
        return False
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(folder: Path, error: OSError) -> WeightguardError:
    return WeightguardError(
        f"the sealed model cannot be kept in {str(folder)!r:.300}: {error.strerror or error}. Give "
        "cache= a folder of this user's own with room for three times the model, or mode='inplace'"
    )
