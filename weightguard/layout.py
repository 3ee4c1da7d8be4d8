"""Where a checkpoint's files keep its tensors, so that a damaged container can be put together.

A file is a partition of its bytes: those of tensors that lie in one run, and *gaps*, which are
headers, metadata, padding and whatever else is no such tensor. Format: docs/spec/parity-v1.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec

from weightguard.checkpoint import Checkpoint
from weightguard.checkpoint.files import FileRange
from weightguard.errors import ManifestError
from weightguard.tensor import TensorView

LAYOUT_SCHEMA: Literal["weightguard-layout-v1"] = "weightguard-layout-v1"
MAX_FILES = 100_000

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class FileLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: name in the checkpoint, size in bytes, and (tensor number, first byte) pairs."""

    name: str
    size: _Count
    tensors: tuple[tuple[_Count, _Count], ...]


class Layout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All files of a checkpoint; ``order`` are the tensors' numbers as they were read."""

    schema: Literal["weightguard-layout-v1"]
    order: tuple[_Count, ...]
    files: Annotated[tuple[FileLayout, ...], msgspec.Meta(max_length=MAX_FILES)]


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes ``start`` to ``end`` of a file that belong to no tensor."""

    file: str
    start: int
    end: int


def layout_of(checkpoint: Checkpoint, numbers: Mapping[str, int]) -> Layout:
    """Return the layout of an open checkpoint; ``numbers`` are its tensors' numbers by name."""
    places: dict[str, list[tuple[int, int]]] = {file.name: [] for file in checkpoint.files}
    for tensor in checkpoint.tensors:
        if isinstance(tensor.source, FileRange):
            number = numbers[tensor.name]
            places[tensor.source.file.name].append((number, tensor.source.start))
    files = tuple(
        FileLayout(file.name, file.size, tuple(sorted(places[file.name], key=lambda p: p[1])))
        for file in checkpoint.files
    )
    order = tuple(numbers[tensor.name] for tensor in checkpoint.tensors)
    return Layout(LAYOUT_SCHEMA, order, files)


def gaps(layout: Layout, views: Sequence[TensorView]) -> Iterator[Gap]:
    """Yield every run of bytes between a layout's tensors; ``views`` are in number order."""
    for file in layout.files:
        reached = 0
        for number, start in file.tensors:
            if start > reached:
                yield Gap(file.name, reached, start)
            reached = max(reached, start + views[number].nbytes)
        if file.size > reached:
            yield Gap(file.name, reached, file.size)


def decode_layout(data: bytes, views: Sequence[TensorView]) -> Layout:
    """Return a layout read from a parity sidecar; ManifestError where it cannot be one."""
    try:
        layout = msgspec.json.decode(data, type=Layout)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ManifestError(f"the parity's layout is damaged: {error}") from error
    if sorted(layout.order) != list(range(len(views))):
        raise ManifestError("the parity's layout does not list the tensors of its manifest")
    names = [file.name for file in layout.files]
    if len(set(names)) != len(names) or not all(map(is_inside, names)):
        raise ManifestError("the parity's layout names a file outside of its checkpoint")
    for file in layout.files:
        _check_places(file, views)
    return layout


def is_inside(name: str) -> bool:
    """Return whether a file's name leads to no place outside of its folder."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not set(name) & {"\0", "\\"}
    )


def _check_places(file: FileLayout, views: Sequence[TensorView]) -> None:
    previous = 0
    for number, start in file.tensors:
        if number >= len(views) or start < previous or start + views[number].nbytes > file.size:
            raise ManifestError("the parity's layout places a tensor outside of its file")
        previous = start
