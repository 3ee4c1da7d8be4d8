"""What lies beside a checkpoint and is no part of it: named, so that nobody takes it for checked.

A clean ``model.safetensors`` says nothing about the ``pytorch_model.bin`` beside it, which other
loaders unpickle.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from weightguard.checkpoint.choice import COMPANION, SAFETENSORS, TORCH
from weightguard.finding import BesideKind, FileBeside, FilesBeside

MAX_NAMED = 100
"""Files that a report names; it counts them all."""

MAX_SUBFOLDERS = 200
MAX_SUBFOLDER_ENTRIES = 10_000
"""Subfolders, and entries of each, that are searched for weight files."""

_PICKLES = (*TORCH, ".pkl", ".pickle")
_WEIGHTS = (*SAFETENSORS, ".gguf", ".onnx", ".h5", ".keras", ".msgpack", ".npz", ".tflite")


def files_beside(
    root: Path, names: Sequence[str], accounted: Iterable[str], known: Mapping[str, BesideKind]
) -> FilesBeside:
    """Return the weight files and pickles among ``names`` that are not ``accounted`` for.

    ``known`` gives the kind of those that the choice of files has told apart.
    """
    read = frozenset(accounted)
    found = [
        FileBeside(name, kind)
        for name in names
        if name not in read and (kind := known.get(name) or _kind(name)) is not None
    ]
    found += [FileBeside(name, "folder") for name in folders_of_weights(root) if name not in read]
    return FilesBeside(len(found), tuple(found[:MAX_NAMED]))


def _kind(name: str) -> BesideKind | None:
    lower = name.lower()
    if lower.endswith(_PICKLES):
        return "training" if COMPANION.fullmatch(name) else "pickle"
    return "other" if lower.endswith(_WEIGHTS) else None


def folders_of_weights(root: Path) -> list[str]:
    """Return the names of the folders in ``root`` that hold weight files or pickles, sorted."""
    return sorted(name for name in _subfolders(root) if _holds_weights(root / name))


def _subfolders(root: Path) -> Iterator[str]:
    try:
        with os.scandir(root) as entries:
            folders = (e.name for e in entries if e.is_dir(follow_symlinks=False))
            yield from islice((n for n in folders if not n.startswith(".")), MAX_SUBFOLDERS)
    except OSError:
        return


def _holds_weights(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            some = islice(entries, MAX_SUBFOLDER_ENTRIES)
            return any(_kind(entry.name) is not None for entry in some)
    except OSError:
        return False
