"""What knows the bytes of files beside their tensors: parity, or a golden copy."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weightguard.catalogue import Severity
from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.checkpoint.files import CheckpointFile, FileRange
from weightguard.checkpoint.strict_json import read_json_object
from weightguard.errors import CheckpointError
from weightguard.layout import FileLayout, Gap, Layout, gaps, is_inside, layout_of
from weightguard.manifest import Manifest
from weightguard.parity import Parity
from weightguard.scan.digest import BLOCK_BYTES

MAX_INDEX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """How files are laid out, and the bytes of their gaps: ``read(gap, start, length)``.

    ``names`` are those the files have here, by those of the layout. ``proven`` says that the
    manifest's digests cover these bytes, as they do parity's; else a file takes them only when all
    its tensors are as attested.
    """

    layout: Layout
    names: dict[str, str]
    gaps: tuple[Gap, ...]
    read: Callable[[Gap, int, int], bytes]
    proven: bool


def frame_of_parity(path: Path, parity: Parity) -> Frame | None:
    """Return what parity knows of the files at ``path``, None where it is of others."""
    names = _local_names(path, parity.layout)
    if not names:
        return None
    places = dict(parity.gaps)

    def read(gap: Gap, start: int, length: int) -> bytes:
        return parity.gap_bytes(places[gap] + start - gap.start, length)

    return Frame(parity.layout, names, tuple(places), read, proven=True)


def frame_of_copy(path: Path, copy: Checkpoint, manifest: Manifest) -> Frame | None:
    """Return what a golden copy knows of those files at ``path`` that cannot be opened.

    None where it has other files, of another format or sharding, other tensors than the manifest,
    some that do not lie in one run of a file, or is itself found to be unsound.
    """
    numbers = {
        alias: manifest.numbers[name]
        for name, record in manifest.document.tensors.items()
        for alias in (name, *record.aliases)
    }
    if not _is_of(copy, manifest, numbers):
        return None
    layout = layout_of(copy, numbers)
    names = _local_names(path, layout)
    if not all(map(is_inside, names)) or not names or not _same_files(path, layout, names):
        return None
    root = path if path.is_dir() else path.parent
    lost = {f.name for f in layout.files if not _opens(root / names[f.name], f, numbers)}
    files = {file.name: file for file in copy.files}

    def read(gap: Gap, start: int, length: int) -> bytes:
        return files[gap.file].read(start, length, limit=BLOCK_BYTES)

    lent = tuple(gap for gap in gaps(layout, manifest.views()) if gap.file in lost)
    return Frame(layout, names, lent, read, proven=False)


def _local_names(path: Path, layout: Layout) -> dict[str, str]:
    """Return the name here of each file of a layout; nothing where none of them is here."""
    if path.is_dir():
        present = any(os.path.lexists(path / file.name) for file in layout.files)
        return {file.name: file.name for file in layout.files} if present else {}
    if len(layout.files) == 1:
        return {layout.files[0].name: path.name}
    names = {file.name: file.name for file in layout.files}
    return names if path.name in names else {}


def _is_of(copy: Checkpoint, manifest: Manifest, numbers: dict[str, int]) -> bool:
    """Return whether a copy has tensors of the manifest only, each once and in one run."""
    views, seen = manifest.views(), set()
    for tensor in copy.tensors:
        number = numbers.get(tensor.name)
        if number is None or number in seen or not isinstance(tensor.source, FileRange):
            return False
        if (tensor.dtype, tensor.shape) != (views[number].dtype, views[number].shape):
            return False
        seen.add(number)
    return not any(found.level >= Severity.ERROR for found in copy.findings)


def _same_files(path: Path, layout: Layout, names: dict[str, str]) -> bool:
    """Return whether no weights lie here that the copy lacks: it would only come to lie beside."""
    suffixes = {Path(file.name).suffix for file in layout.files if file.tensors}
    if len(names) == 1 and not path.is_dir():
        return path.suffix in suffixes
    root = path if path.is_dir() else path.parent
    return all(e.name in names for e in root.iterdir() if e.suffix in suffixes)


def _opens(path: Path, file: FileLayout, numbers: dict[str, int]) -> bool:
    """Return whether a file can be opened and has the tensors of ``file``, in the same places."""
    try:
        if not file.tensors:
            _read_index(path)
            return True
        with open_checkpoint(path) as checkpoint:
            here = layout_of(checkpoint, numbers).files
    except (CheckpointError, KeyError):
        return False
    return any(other.name == path.name and other.tensors == file.tensors for other in here)


def _read_index(path: Path) -> None:
    file = CheckpointFile(path, path.name)
    try:
        read_json_object(file, limit=MAX_INDEX_BYTES, code="WG102")
    finally:
        file.close()
