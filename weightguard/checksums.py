"""Checksums that containers carry themselves, and SHA-256 digests of whole files."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from weightguard.checkpoint import Checkpoint
from weightguard.checkpoint.container import StoredChecksum
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.names import shown
from weightguard.finding import Evidence, Finding, finding
from weightguard.manifest import FileRecord
from weightguard.progress import Meter
from weightguard.scan.stream import default_threads
from weightguard.units import counted

READ_BYTES = 1 << 20

MAX_LISTED = 8
"""Tensors that a finding's evidence names, each cut to ``MAX_LISTED_CHARS``."""

MAX_LISTED_CHARS = 200


def verify_checksums(
    checkpoint: Checkpoint, whole_files: bool, threads: int | None, meter: Meter
) -> list[Finding]:
    """Return a finding for each stored checksum that the bytes contradict.

    Checksums over whole files are compared only when ``whole_files`` says so.
    """
    stored = [c for c in checkpoint.checksums if whole_files or not c.whole_file]
    with ThreadPoolExecutor(threads or default_threads()) as pool:
        results = pool.map(lambda checksum: _verify(checksum, meter), stored)
        return [mismatch for mismatch in results if mismatch is not None]


def file_digests(
    files: Sequence[CheckpointFile], threads: int | None, meter: Meter
) -> dict[str, FileRecord]:
    """Return size and SHA-256 of each file of a checkpoint, by its relative name."""

    def record(file: CheckpointFile) -> FileRecord:
        hasher = hashlib.sha256()
        feed(file, 0, file.size, hasher.update, meter)
        return FileRecord(file.size, hasher.hexdigest())

    with ThreadPoolExecutor(threads or default_threads()) as pool:
        names = [file.name for file in files]
        return dict(zip(names, pool.map(record, files), strict=True))


def _verify(stored: StoredChecksum, meter: Meter) -> Finding | None:
    actual = _compute(stored, meter)
    if actual == stored.expected:
        return None
    return finding(
        stored.rule,
        f"the record {shown(stored.record)}{_whose(stored)}, has {stored.algorithm} {actual}, "
        f"but {stored.expected} is stored with it",
        file=stored.file.name,
        offset=stored.offset,
        tensor=next(iter(stored.tensors), None),
        evidence={
            "record": stored.record,
            "expected": stored.expected,
            "actual": actual,
            **_tensors(stored),
        },
    )


def _tensors(stored: StoredChecksum) -> Evidence:
    """Return which tensors the damaged bytes belong to, as far as is known."""
    if not stored.tensors:
        return {}
    names = [name[:MAX_LISTED_CHARS] for name in stored.tensors[:MAX_LISTED]]
    return {"count": len(stored.tensors), "tensors": names}


def _whose(stored: StoredChecksum) -> str:
    if not stored.tensors:
        return ""
    first, more = shown(stored.tensors[0]), len(stored.tensors) - 1
    return f", the data of {first}" + (f" and {counted(more, 'more tensor')}" if more else "")


def _compute(stored: StoredChecksum, meter: Meter) -> str:
    if stored.algorithm == "sha256":
        hasher = hashlib.sha256()
        feed(stored.file, stored.offset, stored.nbytes, hasher.update, meter)
        return hasher.hexdigest()
    crc = 0

    def update(data: memoryview) -> None:
        nonlocal crc
        crc = zlib.crc32(data, crc)

    feed(stored.file, stored.offset, stored.nbytes, update, meter)
    return f"{crc:08x}"


def feed(
    file: CheckpointFile,
    offset: int,
    nbytes: int,
    update: Callable[[memoryview], object],
    meter: Meter,
) -> None:
    """Pass ``nbytes`` bytes from ``offset`` on to ``update``, in pieces of ``READ_BYTES``."""
    buffer = memoryview(bytearray(min(READ_BYTES, nbytes)))
    done = 0
    while done < nbytes:
        piece = buffer[: min(READ_BYTES, nbytes - done)]
        file.read_into(offset + done, piece)
        update(piece)
        meter.add(len(piece))
        done += len(piece)
