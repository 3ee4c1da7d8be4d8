"""The checkpoint as the rest of weightguard sees it, whatever its file format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.finding import FilesBeside, Finding
from weightguard.tensor import TensorView


@dataclass(frozen=True, slots=True)
class StoredChecksum:
    """A checksum that the container itself carries for a byte range of one of its files.

    ``algorithm`` is ``crc32`` (zip records) or ``sha256`` (blobs named by their digest),
    ``expected`` lower-case hex. ``rule`` is the code to report on a mismatch. ``whole_file``
    checksums are costly and compared only when file digests are asked for. ``tensors`` are the
    names of those that lie in the range, where the container tells.
    """

    file: CheckpointFile
    offset: int
    nbytes: int
    algorithm: str
    expected: str
    rule: str
    record: str
    whole_file: bool = False
    tensors: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """What a format's parser returns for one file; ``unread`` counts tensors it could not read."""

    tensors: tuple[TensorView, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    checksums: tuple[StoredChecksum, ...] = ()
    unread: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights at rest, opened read-only.

    ``tensors`` are in reading order (file by file, by offset), names unique. ``findings`` are
    deviations of the container that did not keep it from being read. ``config`` is the parsed
    ``config.json`` of a Hugging Face folder, or None. ``unread`` counts tensors that the checkpoint
    names but that cannot be read: of kinds that are not supported, or in missing shards.
    ``beside`` are files of its folder that belong to no part of it.
    """

    path: Path
    format: str
    folder: Folder
    tensors: tuple[TensorView, ...]
    findings: tuple[Finding, ...] = ()
    checksums: tuple[StoredChecksum, ...] = ()
    config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    unread: int = 0
    beside: FilesBeside = field(default_factory=FilesBeside)

    @property
    def nbytes(self) -> int:
        """The canonical bytes of all tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def files(self) -> tuple[CheckpointFile, ...]:
        """The files that hold the checkpoint, in the order they were opened."""
        return self.folder.opened

    def close(self) -> None:
        """Close every file."""
        self.folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
