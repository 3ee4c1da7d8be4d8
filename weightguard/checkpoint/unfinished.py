"""The journal that an interrupted repair in place leaves: its name, and the files it is of.

Such files may be half of what they were and half of what they were to become.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from weightguard.checkpoint.files import CheckpointFile
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.finding import Finding, finding

JOURNAL = ".weightguard-repair.journal"
MAGIC = b"weightguard-journal-v2\n"
MAX_HEADER_BYTES = 1 << 28
REMEDY = (
    "Finish it: weightguard repair PATH MANIFEST --in-place. Or delete the journal: "
    "what it did not heal is found anew."
)


class _Named(msgspec.Struct, frozen=True):
    name: str


class _Names(msgspec.Struct, frozen=True):
    files: tuple[_Named, ...]


def is_journal(name: str) -> bool:
    """Return whether a file of a checkpoint's folder is ours and no part of the checkpoint."""
    return name == JOURNAL or (name.startswith(f".{JOURNAL}.") and name.endswith(".tmp"))


def unfinished_repair(path: Path, files: Iterable[str]) -> Iterator[Finding]:
    """Yield WG123 where the journal of an interrupted repair lies in a checkpoint's folder.

    Where ``path`` is a file, only if the journal names one of ``files``, or cannot be read.
    """
    journal = (path if path.is_dir() else path.parent) / JOURNAL
    if not os.path.lexists(journal):
        return
    named = None if path.is_dir() else _files_of(journal)
    if named is None or not named.isdisjoint(files):
        words = f"a repair in place was interrupted: its journal {JOURNAL!r} is still there"
        yield finding("WG123", words, file=JOURNAL, remedy=REMEDY)


def header_text(journal: CheckpointFile) -> bytes:
    """Return the JSON that a journal begins with; CheckpointError or ValueError if there is none.

    It follows ``MAGIC`` and its own length, eight bytes, little-endian.
    """
    fixed = len(MAGIC) + 8
    start = journal.read(0, min(fixed, journal.size), limit=fixed)
    if start.startswith(b"weightguard-journal-v") and not start.startswith(MAGIC):
        raise ValueError("it is of another version of weightguard")
    length = int.from_bytes(start[len(MAGIC) :], "little")
    if not start.startswith(MAGIC) or length > MAX_HEADER_BYTES:
        raise ValueError("it is no journal")
    return journal.read(fixed, length, limit=length)


def _files_of(path: Path) -> frozenset[str] | None:
    try:
        journal = CheckpointFile(path, path.name)
    except WeightguardError:
        return None
    try:
        header = msgspec.json.decode(header_text(journal), type=_Names)
    except (CheckpointError, ValueError):
        return None
    finally:
        journal.close()
    return frozenset(file.name for file in header.files)
