"""The trust cache: what an earlier run saw of a shard that looks unchanged since.

A shard looks unchanged when device, inode, size, mtime and ctime are what they were. That is no
proof, so the cache serves only those who ask for it, and every shard taken from it is reported.
A manifest a shard is kept for each version, digest and base that it was made with, in a folder of
the user's that nobody else can write to. It records what was read and nothing of what was judged,
so every policy is served by it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from weightguard.atomic import atomic_write
from weightguard.checkpoint import Checkpoint
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checksums import file_digests
from weightguard.drift import Drift, TensorChange
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.manifest import FileRecord, Manifest
from weightguard.private import make_private, user_cache
from weightguard.progress import Meter
from weightguard.recording import Recording, replay
from weightguard.salient import Salience
from weightguard.scan.digest import DigestAlgorithm
from weightguard.scan.fingerprint import TensorFingerprint, TensorObserver, UIntArray
from weightguard.tensor import TensorView

SETTLED_NS = 2_000_000_000
"""A shard that changed less than this before it was read is not kept: file systems stamp times
in steps of up to two seconds, and a change within the step would not show."""

MAX_STATE_BYTES = 256 << 20
KEPT_ENTRIES = 8
"""Entries of one shard: the latest few bases and digests that it was read with."""

_REMEDY = "Set XDG_CACHE_HOME to another place, or leave out --trust-cache"
FORMATS = ("safetensors", "gguf")
"""Formats whose tensors lie in the shard that names them, without stored checksums."""


class Identity(msgspec.Struct, frozen=True):
    """What the system says of a file; times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, file: CheckpointFile) -> Identity:
        """Return the identity of an open file."""
        status = file.status()
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shard's entry; ``manifest`` is the SHA-256 of the manifest kept with it."""

    context: str
    identity: Identity
    sha256: str
    manifest: str
    changes: tuple[TensorChange, ...]


@dataclass(frozen=True, slots=True)
class _Kept:
    """An entry that applies: what is recorded of one shard."""

    file: FileRecord
    manifest: Path
    changes: tuple[TensorChange, ...]


class TrustCache:
    """What was kept of the shards of one checkpoint, and what this run adds to it."""

    def __init__(self, checkpoint: Checkpoint, context: Sequence[str], digest: DigestAlgorithm):
        """Look the shards up. ``context`` is all that must be as it was for an entry to count.

        Raises WeightguardError where the cache's folder is not the user's alone.
        """
        self._folder = cache_folder()
        _refuse_inside(self._folder, checkpoint)
        make_private(self._folder, _REMEDY)
        self._context, self._digest = [*context, digest], digest
        self._tensors: dict[str, list[TensorView]] = {}
        for tensor in checkpoint.tensors:
            self._tensors.setdefault(tensor.shard, []).append(tensor)
        self._started = time.time_ns()
        self._files = {
            file.name: file for file in checkpoint.files if _can_be_kept(checkpoint, file)
        }
        self._identities = {name: Identity.of(file) for name, file in self._files.items()}
        self._kept = self._look_up()
        self._recordings: dict[str, Recording] = {}
        self._lock = threading.Lock()
        self._replayed: tuple[str, Manifest] | None = None

    @property
    def trusted(self) -> dict[str, FileRecord]:
        """The shards that need not be read: size and SHA-256 by name."""
        return {name: kept.file for name, kept in self._kept.items()}

    @property
    def changes(self) -> Iterable[TensorChange]:
        """What is known of the drift of trusted tensors."""
        return [change for kept in self._kept.values() for change in kept.changes]

    def observers(self, tensor: TensorView, drift: Drift | None) -> Sequence[TensorObserver]:
        """Return who records ``tensor`` of a shard that is read."""
        shard = tensor.shard
        if shard not in self._files:
            return ()
        with self._lock:
            if shard not in self._recordings:
                self._recordings[shard] = Recording(self._tensors[shard], self._digest)
            recorder = self._recordings[shard].observer(tensor)
        return [recorder, _Completion(self, shard, drift)]

    def replay(self, tensor: TensorView, observers: Sequence[TensorObserver]) -> None:
        """Show ``observers`` what was recorded of a tensor of a trusted shard."""
        if self._replayed is None or self._replayed[0] != tensor.shard:
            self.close()
            manifest = Manifest.read(self._kept[tensor.shard].manifest)
            self._replayed = (tensor.shard, manifest)
        replay(self._replayed[1], tensor, observers)

    def keep(self, shard: str, drift: Drift | None) -> None:
        """Keep what this run saw of a shard, once all of it was read, if it stayed as it was."""
        with self._lock:
            recording = self._recordings.get(shard)
            if recording is None or not recording.complete:
                return
            del self._recordings[shard]
        if self._settled(shard):
            known = [drift and drift.change_of(tensor) for tensor in self._tensors[shard]]
            self._write(shard, recording, tuple(change for change in known if change))

    def close(self) -> None:
        """Close what is open of the cache."""
        if self._replayed is not None:
            self._replayed[1].close()
            self._replayed = None

    def _settled(self, shard: str) -> bool:
        identity = self._identities[shard]
        return max(identity.mtime, identity.ctime) < self._started - SETTLED_NS

    def _look_up(self) -> dict[str, _Kept]:
        found = {}
        for name, file in self._files.items():
            kept = self._read(file)
            if kept is not None:
                found[name] = kept
        return found

    def _read(self, file: CheckpointFile) -> _Kept | None:
        """Return the entry of a file; None where there is none, or it is no longer whole."""
        document, entry = self._paths(file)
        try:
            state = msgspec.json.decode(_read_own(entry), type=_State)
            if (state.context, state.identity) != (
                self._context_of(file),
                self._identities[file.name],
            ):
                return None
            if hashlib.sha256(_read_own(document)).hexdigest() != state.manifest:
                return None
            with Manifest.read(document) as manifest:
                names = manifest.document.tensors.keys()
        except (OSError, msgspec.DecodeError, CheckpointError, WeightguardError):
            return None
        if names != {tensor.name for tensor in self._tensors.get(file.name, ())}:
            return None
        return _Kept(FileRecord(file.size, state.sha256), document, state.changes)

    def _write(self, shard: str, recording: Recording, changes: tuple[TensorChange, ...]) -> None:
        file = self._files[shard]
        record = file_digests([file], 1, Meter(0, None))[shard]
        if Identity.of(file) != self._identities[shard]:
            return
        document, entry = self._paths(file)
        with recording.finish({shard: record}, Salience()) as manifest, self._locked():
            self._remove(entry.stem)  # a damaged manifest would not be replaced
            manifest.write(document)
            state = _State(
                self._context_of(file),
                self._identities[shard],
                record.sha256,
                hashlib.sha256(document.read_bytes()).hexdigest(),
                changes,
            )
            with atomic_write(entry) as target:
                target.write(msgspec.json.encode(state))
            self._remove_oldest(file)

    def _paths(self, file: CheckpointFile) -> tuple[Path, Path]:
        """Return the manifest and the state of a shard's entry under this context."""
        name = f"{_shard_of(file)}-{self._context_of(file)[:24]}"
        return self._folder / f"{name}.weightguard.json", self._folder / f"{name}.state"

    def _remove_oldest(self, file: CheckpointFile) -> None:
        states = self._folder.glob(f"{_shard_of(file)}-*.state")
        for path in sorted(states, key=lambda path: path.stat().st_mtime_ns)[:-KEPT_ENTRIES]:
            self._remove(path.stem)

    def _remove(self, entry: str) -> None:
        for path in self._folder.glob(f"{entry}[.-]*"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other writers of the cache away, those of other processes too."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _context_of(self, file: CheckpointFile) -> str:
        shapes = [
            [t.name, t.dtype.name, list(t.shape), t.offset, list(t.aliases)]
            for t in self._tensors.get(file.name, ())
        ]
        return hashlib.sha256(json.dumps([self._context, shapes]).encode()).hexdigest()


class _Completion:
    """Tells the cache when a tensor was read to its end; the last observer of it."""

    def __init__(self, cache: TrustCache, shard: str, drift: Drift | None):
        self._cache, self._shard, self._drift = cache, shard, drift

    def residues(self, first_row: int, residues: NDArray[np.uint64]) -> None:
        """See TensorObserver."""

    def magnitudes(self, first_row: int, magnitudes: UIntArray) -> None:
        """See TensorObserver."""

    def finished(self, fingerprint: TensorFingerprint) -> None:
        """See TensorObserver."""
        self._cache.keep(self._shard, self._drift)


def _shard_of(file: CheckpointFile) -> str:
    return hashlib.sha256(os.fsencode(file.path)).hexdigest()[:40]


def cache_folder() -> Path:
    """Return where the cache lies."""
    return user_cache("trust")


def _can_be_kept(checkpoint: Checkpoint, file: CheckpointFile) -> bool:
    checked = any(stored.file is file for stored in checkpoint.checksums)
    holds = any(tensor.shard == file.name for tensor in checkpoint.tensors)
    return checkpoint.format in FORMATS and holds and not checked


def _refuse_inside(folder: Path, checkpoint: Checkpoint) -> None:
    if folder.resolve().is_relative_to(checkpoint.folder.root.resolve()):
        raise WeightguardError(
            f"the cache {str(folder)!r} lies in the checkpoint's folder, whose writer is not "
            "trusted. Set XDG_CACHE_HOME to another place."
        )


def _read_own(path: Path) -> bytes:
    """Return a file of the cache; OSError unless it is a regular file of ours."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not own or status.st_size > MAX_STATE_BYTES:
            raise PermissionError(f"{path} is not what this user wrote")
        return file.read()
