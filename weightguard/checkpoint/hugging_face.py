"""What Hugging Face folders add: config.json, and cache snapshots made of links into ``blobs``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from weightguard.checkpoint.container import StoredChecksum
from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.checkpoint.names import shown
from weightguard.checkpoint.strict_json import read_json_object
from weightguard.errors import CheckpointError, malformed
from weightguard.finding import Finding

CONFIG = "config.json"
MAX_CONFIG_BYTES = 16 << 20
"""The largest published ones, with their label maps, have about one megabyte."""

MAX_SNAPSHOTS = 1000
"""Snapshots of a repository that are looked at, to name one of them."""

_SHA256_NAME = re.compile(r"[0-9a-f]{64}")


def blobs_of(folder: Path) -> Path | None:
    """Return the real blobs folder if ``folder`` is (in) a snapshot of a hub cache, else None.

    A cache has the layout ``models--ORG--NAME/{blobs,snapshots/REVISION}``.
    """
    real = folder.resolve()
    for snapshot in (real, *real.parents):
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
            blobs = repository / "blobs"
            return blobs if blobs.is_dir() and not blobs.is_symlink() else None
    return None


def snapshots_of(folder: Path) -> list[Path]:
    """Return the snapshots of the cached repository ``folder``, the newest first."""
    held = folder if folder.name == "snapshots" else folder / "snapshots"
    if not held.parent.resolve().name.startswith("models--"):
        return []
    try:
        snapshots = [entry for entry in islice(held.iterdir(), MAX_SNAPSHOTS) if entry.is_dir()]
        return sorted(snapshots, key=lambda s: (-s.stat().st_mtime, s.name))
    except OSError:
        return []


def blob_checksum(folder: Folder, file: CheckpointFile) -> Iterator[StoredChecksum]:
    """Yield the checksum that a blob's name is; nothing for files that are no such blob.

    Blobs of Git LFS are named by their SHA-256, others by a Git object's SHA-1, which is no
    digest of the bytes alone.
    """
    name = file.path.name
    if file.path.parent == folder.blobs and _SHA256_NAME.fullmatch(name):
        yield StoredChecksum(
            file, 0, file.size, "sha256", name, "WG118", file.name, whole_file=True
        )


def read_config(folder: Folder) -> tuple[dict[str, Any] | None, tuple[Finding, ...]]:
    """Return the parsed config.json, or None with the finding that says what is wrong with it.

    That is WG120, or WG110 and WG111 where it is a link out of the folder or no regular file.
    """
    # a dangling link exists too, and is a finding
    if not folder.holds(CONFIG):
        return None, ()
    try:
        return _parse_config(folder), ()
    except CheckpointError as error:
        return None, (error.finding,)


def _parse_config(folder: Folder) -> dict[str, Any]:
    file = folder.peek(CONFIG)
    try:
        if file.size > MAX_CONFIG_BYTES:
            words = f"{shown(CONFIG)} has {file.size} bytes, above the limit of {MAX_CONFIG_BYTES}"
            raise malformed("WG120", words, file=CONFIG, offset=0)
        return read_json_object(file, limit=MAX_CONFIG_BYTES, code="WG120")
    finally:
        file.close()
