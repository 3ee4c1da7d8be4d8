"""open_checkpoint(): from a path to a checkpoint, whatever its format and sharding."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightguard.checkpoint.beside import files_beside, folders_of_weights
from weightguard.checkpoint.choice import extra_shards, index_of, names_in, weight_groups
from weightguard.checkpoint.container import Checkpoint, ParsedFile, StoredChecksum
from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.checkpoint.hugging_face import blob_checksum, blobs_of, read_config, snapshots_of
from weightguard.checkpoint.names import hostile_file_names, hostile_names, shown
from weightguard.checkpoint.parsing import parse
from weightguard.checkpoint.recognise import Format, recognise, unrecognised
from weightguard.checkpoint.shard_index import check_index, count_absent, read_index
from weightguard.checkpoint.unfinished import unfinished_repair
from weightguard.checkpoint.union import unite
from weightguard.checkpoint.variants import Selection, incomplete_sets, repeated, select
from weightguard.errors import CheckpointError, malformed
from weightguard.finding import BesideKind, FilesBeside, Finding, finding
from weightguard.tensor import TensorView

MAX_SUGGESTED = 8
"""Folders that a remedy names."""


def open_checkpoint(path: str | os.PathLike[str], *, private: bool = False) -> Checkpoint:
    """Open the checkpoint at ``path``: a file, a shard index, or a folder.

    Formats are recognised by content, and only headers are read. Of a folder one checkpoint is
    opened: that of its index, else its safetensors, PyTorch, GGUF or ONNX files, in this order;
    other weight files and pickles are named as ``beside`` it. ``path`` itself may be a link to
    anywhere, what lies beside it may not. ``private`` reads every file once, into a copy that
    nobody else can change, for whoever goes on to load what was verified. Raises CheckpointError
    when the checkpoint cannot be read; lesser contradictions become its findings.
    """
    path = Path(path)
    is_folder = _is_folder(path)
    root = path if is_folder else path.parent
    folder = Folder(root, blobs_of(root), private=private)
    opened = open_in(folder, path, named=not is_folder)
    unfinished = unfinished_repair(path, [file.name for file in opened.files])
    return replace(opened, findings=(*opened.findings, *unfinished))


def open_in(folder: Folder, path: Path, *, named: bool) -> Checkpoint:
    """Open the checkpoint of ``folder``, or of the one file ``path``; closes it on an error."""
    try:
        opening = _Opening(folder)
        format_ = opening.open_named(path) if named else opening.open_folder()
        return opening.checkpoint(path, format_)
    except BaseException:
        folder.close()
        raise


def _is_folder(path: Path) -> bool:
    try:
        return path.resolve(strict=True).is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can be there"
        raise malformed(
            "WG122",
            f"{shown(str(path))} cannot be opened: {reason}",
            file=path.name,
            remedy="Check the path.",
        ) from error


class _Opening:
    """Gathers the files of one checkpoint, and what was found in them."""

    def __init__(self, folder: Folder):
        self._folder = folder
        self._tensors: dict[str, tuple[TensorView, ...]] = {}
        self._listed: dict[str, str] = {}
        self._findings: list[Finding] = []
        self._checksums: list[StoredChecksum] = []
        self._metadata: dict[str, str] = {}
        self._config: dict[str, Any] | None = None
        self._unread = 0
        self._beside = FilesBeside()
        self._known: dict[str, BesideKind] = {}

    def checkpoint(self, path: Path, format_: Format) -> Checkpoint:
        """Return the checkpoint gathered so far."""
        tensors, repetitions = unite(self._tensors, self._listed)
        self._findings += repetitions
        self._findings += hostile_names(tensors)
        self._findings += hostile_file_names(file.name for file in self._folder.opened)
        for file in self._folder.opened:
            self._checksums += blob_checksum(self._folder, file)
        return Checkpoint(
            path,
            format_,
            self._folder,
            tensors,
            tuple(self._findings),
            tuple(self._checksums),
            self._config,
            self._metadata,
            self._unread,
            self._beside,
        )

    def open_named(self, path: Path) -> Format:
        """Open the file that the user named, with the files it names itself."""
        # in a cache snapshot the file is a link too, and leads to a blob
        in_cache = self._folder.blobs is not None
        file = self._folder.open(path.name) if in_cache else self._folder.adopt(path)
        format_ = recognise(file)
        if format_ is None:
            raise unrecognised(file)
        if format_ == "index":
            return self._open_index(file)
        self._open_model(file, format_)
        return format_

    def _names(self) -> tuple[str, ...]:
        return (
            self._folder.listed if self._folder.listed is not None else names_in(self._folder.root)
        )

    def open_folder(self) -> Format:
        """Open the checkpoint of the folder."""
        names = self._names()
        index = index_of(names)
        if index is not None:
            return self._open_index(self._folder.open(index))
        self._read_config()
        format_ = self._open_weights(names)
        self._note_beside(names)
        return format_

    def _open_weights(self, names: Sequence[str]) -> Format:
        """Open the first group of files whose content is a checkpoint."""
        strangers: list[CheckpointError] = []
        for group in weight_groups(names):
            selection = select(group)
            opened = self._recognised(selection.read, strangers)
            if opened:
                self._account(selection)
                return self._open_group(opened)
        if strangers:
            raise strangers[0]
        raise malformed(
            "WG101",
            f"the folder {shown(str(self._folder.root))} holds no weight file",
            file=".",
            remedy=_where_to_look(self._folder.root),
        )

    def _account(self, selection: Selection) -> None:
        self._known = selection.beside
        whole = shown(selection.read[0])
        for name in selection.strangers:
            words = f"is no part of {whole}, which loaders take for the whole model"
            self._findings.append(_extra(name, words))
        self._findings += incomplete_sets(selection.read)

    def _recognised(
        self, group: Sequence[str], strangers: list[CheckpointError]
    ) -> list[tuple[CheckpointFile, Format]]:
        """Open the files of a group; those of unknown content are closed and become strangers."""
        opened: list[tuple[CheckpointFile, Format]] = []
        for name in group:
            file = self._folder.open(name)
            format_ = recognise(file)
            if format_ is not None and format_ != "index":
                opened.append((file, format_))
                continue
            error = unrecognised(file)
            if name.endswith((".safetensors", ".gguf")):
                # nothing else is called so: a weight file that is damaged beyond recognition
                raise error
            strangers.append(error)
            self._folder.release(file)
        return opened

    def _open_group(self, opened: Sequence[tuple[CheckpointFile, Format]]) -> Format:
        """Open all files of the first one's format; models of several files are put together."""
        first, format_ = opened[0]
        if format_ in ("gguf", "onnx"):
            for file, _ in opened[1:]:
                self._folder.release(file)
            self._open_model(first, format_)
            read = {file.name for file in self._folder.opened}
            for file, _ in opened[1:]:
                if file.name not in read:
                    self._findings.append(_extra(file.name, "is a model of its own, not read"))
            return format_
        for file, other in opened:
            if other == format_:
                self._parse(file, format_)
            else:
                self._folder.release(file)
                self._findings.append(_extra(file.name, f"is {other}, not {format_}"))
        return format_

    def _open_model(self, file: CheckpointFile, format_: Format) -> None:
        if format_ != "gguf":
            self._parse(file, format_)
            return
        from weightguard.checkpoint.gguf.split import check_split, split_names

        names = split_names(file)
        files = [file if name == file.name else self._folder.open(name) for name in names]
        parts = [(part, self._parse(part, "gguf")) for part in files or [file]]
        if names:
            self._findings += check_split(parts)

    def _open_index(self, file: CheckpointFile) -> Format:
        index = read_index(file)
        self._findings += index.findings
        self._read_config()
        missing = [name for name in index.shards if not self._folder.holds(name)]
        absent = frozenset(missing)
        formats: dict[str, Format] = {}
        for name in index.shards:
            if name not in absent:
                formats[name] = self._open_shard(name)
        if not formats:
            raise malformed(
                "WG109",
                f"no shard of {shown(index.name)} is in its folder; it names {len(missing)}",
                file=index.name,
                remedy="Fetch the shards into the folder of their index.",
            )
        self._listed.update(index.weight_map)
        self._findings += check_index(index, self._tensors, missing)
        self._unread += count_absent(index, self._tensors)
        self._findings += _mixture(formats)
        names = self._names()
        self._known = repeated(names, index.shards)
        for name in extra_shards(names, index.shards):
            if name not in self._known:
                self._findings.append(_extra(name, f"is not listed in {shown(index.name)}"))
        self._note_beside(names)
        return next(iter(formats.values()))

    def _open_shard(self, name: str) -> Format:
        shard = self._folder.open(name)
        format_ = recognise(shard)
        if format_ is None or format_ == "index":
            raise unrecognised(shard)
        self._parse(shard, format_)
        return format_

    def _read_config(self) -> None:
        self._config, findings = read_config(self._folder)
        self._findings += findings

    def _note_beside(self, names: Sequence[str]) -> None:
        accounted = {file.name for file in self._folder.opened}
        accounted.update(found.location.file or "" for found in self._findings)
        self._beside = files_beside(self._folder.root, names, accounted, self._known)

    def _parse(self, file: CheckpointFile, format_: Format) -> ParsedFile:
        parsed = parse(file, format_, self._folder)
        self._tensors[file.name] = parsed.tensors
        self._findings += parsed.findings
        self._checksums += parsed.checksums
        self._unread += parsed.unread
        self._metadata |= parsed.metadata
        return parsed


def _mixture(formats: dict[str, Format]) -> Iterable[Finding]:
    (first, usual), *others = formats.items()
    odd = next((name for name, format_ in others if format_ != usual), None)
    if odd is not None:
        yield finding(
            "WG109",
            f"the shard {shown(odd)} is {formats[odd]}, but {shown(first)} is {usual}",
            file=odd,
            offset=0,
        )


def _where_to_look(folder: Path) -> str:
    snapshots = snapshots_of(folder)
    if snapshots:
        return f"Give a snapshot of this cache: {shown(str(snapshots[0]))}."
    holding = folders_of_weights(folder)
    if holding:
        some = ", ".join(shown(name) for name in holding[:MAX_SUGGESTED])
        return f"Give one of its folders that hold weights: {some}."
    return "Give the folder with the .safetensors, .gguf, .bin, .pt or .onnx files."


def _extra(name: str, words: str) -> Finding:
    return finding(
        "WG121", f"{shown(name)} lies beside the checkpoint's files but {words}", file=name
    )
