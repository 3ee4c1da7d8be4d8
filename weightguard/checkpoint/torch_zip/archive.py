"""PyTorch's zip checkpoints, read without PyTorch.

``torch.save`` writes an uncompressed zip: ``NAME/data.pkl`` describes tensors, ``NAME/data/K``
holds the bytes of storage K, small records beside them say in which version and byte order.
torch.load does not check the zip's own CRC-32 of records; here it is checked, before use for
what is interpreted and with the audit for what is data.

Source: torch.save of PyTorch 2.13 and the records it writes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from weightguard.checkpoint.container import ParsedFile, StoredChecksum
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.names import shown
from weightguard.checkpoint.torch_zip.named_globals import named_globals
from weightguard.checkpoint.torch_zip.pickle_machine import (
    MAX_GLOBALS_KEPT,
    MAX_PICKLE_BYTES,
    listed,
    read_pickle,
)
from weightguard.checkpoint.torch_zip.views import Place, tensors_of
from weightguard.checkpoint.torch_zip.zip_directory import Record, ZipDirectory
from weightguard.errors import malformed
from weightguard.finding import Finding, finding

MAX_SMALL_RECORD_BYTES = 4096
MAX_SKIMMED_BYTES = 16 << 20
"""Bytes of a file in the old format that are searched for what its pickle asks for."""

_PICKLE = "data.pkl"
_DATA = "data/"
_SMALL = ("byteorder", "version", ".format_version", ".storage_alignment", ".data/serialization_id")
_SCRIPT = ("constants.pkl", "code/")
_TAR_MAGIC_AT = 257
# magic number, protocol version, system, the object, storage keys; then come raw numbers
_LEGACY_PICKLES = 5
_ZIP_START = b"PK"
_SAVE_AGAIN = "Save the weights again with torch.save(model.state_dict(), path), or as safetensors."


@dataclass(frozen=True, slots=True)
class _Archive:
    """The records of an archive by what they are for; ``others`` are for nothing."""

    pickle: Record
    storages: dict[str, Record]
    small: dict[str, Record]
    others: tuple[Record, ...]


def parse_torch(file: CheckpointFile) -> ParsedFile:
    """Return the tensors of a PyTorch zip checkpoint; runs nothing of it and imports no torch.

    Containers give dotted names ('state_dict.layer.weight', list positions as numbers); a
    tensor saved by itself is called 'tensor'. Views that are not contiguous have offset None
    and are gathered when read. Every record has its CRC-32 among the checksums. What the integers
    of a quantised tensor are scaled by are tensors too: 'NAME.scale' and 'NAME.zero_point', and
    'NAME.axis' where these are not single numbers.

    Raises CheckpointError when the file cannot be read: WG102 and WG117 for the zip, WG112 when
    the pickle names anything but tensors and containers, WG113 when a record that has to be
    interpreted is damaged, WG114 for formats before the zip, WG119 for TorchScript and
    big-endian files, WG103, WG106, WG107 and WG116 for contradictions.
    """
    _refuse_legacy(file)
    directory = ZipDirectory(file)
    _refuse_script(directory.names, file)
    records = tuple(directory.locate().values())
    archive = _sorted_out(records, file)
    _check_small(archive, file)
    data = _verified(archive.pickle, file, limit=MAX_PICKLE_BYTES)
    root = read_pickle(data, file=file.name, offset=archive.pickle.offset)
    located = tensors_of(root, archive.storages, Place(file, archive.pickle.offset))
    strangers = _strangers((*located.unused, *archive.others), file)
    return ParsedFile(
        tensors=located.tensors,
        findings=(*located.findings, *strangers),
        checksums=tuple(_checksums(records, archive.storages, located.holders, file)),
        unread=located.unread,
    )


def _refuse_legacy(file: CheckpointFile) -> None:
    head = file.read(0, min(file.size, 512), limit=512)
    if head.startswith(b"\x80"):
        _refuse_named_globals(file)
        raise malformed(
            "WG114",
            f"{file.name} is a pickle, PyTorch's format before 1.6",
            file=file.name,
            offset=0,
        )
    if head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        raise malformed(
            "WG114",
            f"{file.name} is a tar archive, PyTorch's first format",
            file=file.name,
            offset=0,
        )
    if not head.startswith(_ZIP_START) and file.size < 22:
        raise malformed("WG101", f"{file.name} is no zip archive", file=file.name, offset=0)


def _refuse_named_globals(file: CheckpointFile) -> None:
    """Refuse an old pickle that asks for more than tensors as what it is, not for its age."""
    data = file.read(0, min(file.size, MAX_SKIMMED_BYTES), limit=MAX_SKIMMED_BYTES)
    named = dict(islice(named_globals(data, _LEGACY_PICKLES), MAX_GLOBALS_KEPT))
    if named:
        words = f"{shown(file.name)} is a pickle that asks for {listed(named)}"
        offset = min(named.values())
        raise malformed("WG112", f"{words}; nothing of it was run", file=file.name, offset=offset)


def _refuse_script(names: Sequence[str], file: CheckpointFile) -> None:
    for name in names:
        if name.partition("/")[2].startswith(_SCRIPT):
            raise malformed(
                "WG119",
                f"{file.name} is a TorchScript archive: it holds code beside weights",
                file=file.name,
                offset=0,
                remedy=_SAVE_AGAIN,
            )


def _sorted_out(records: Sequence[Record], file: CheckpointFile) -> _Archive:
    prefix = _prefix(records, file)
    named = {record.name[len(prefix) :]: record for record in records}
    others = {
        name: record
        for name, record in named.items()
        if name != _PICKLE and not name.startswith(_DATA) and name not in _SMALL
    }
    for name, record in others.items():
        if name.rpartition("/")[2].casefold() == _PICKLE:
            raise _unsafe(file, record, "is a second data.pkl")
    return _Archive(
        pickle=named[_PICKLE],
        storages={n[len(_DATA) :]: r for n, r in named.items() if n.startswith(_DATA)},
        small={name: named[name] for name in _SMALL if name in named},
        others=tuple(others.values()),
    )


def _prefix(records: Sequence[Record], file: CheckpointFile) -> str:
    """Return the folder that all records lie in, with its slash."""
    pickles = [r.name for r in records if r.name.count("/") == 1 and r.name.endswith("/data.pkl")]
    if not pickles:
        raise malformed(
            "WG101",
            f"{file.name} is a zip archive without a data.pkl, so no PyTorch checkpoint",
            file=file.name,
            offset=0,
        )
    prefix = pickles[0][: -len(_PICKLE)]
    for record in records:
        if not record.name.startswith(prefix):
            raise _unsafe(file, record, f"lies outside the archive's folder {prefix!r:.100}")
    return prefix


def _unsafe(file: CheckpointFile, record: Record, words: str) -> Exception:
    return malformed(
        "WG117",
        f"the record {record.name!r:.100} of {file.name} {words}",
        file=file.name,
        offset=record.offset,
    )


def _check_small(archive: _Archive, file: CheckpointFile) -> None:
    for name, record in archive.small.items():
        value = _verified(record, file, limit=MAX_SMALL_RECORD_BYTES)
        if name != "byteorder" or value == b"little":
            continue
        if value == b"big":
            raise malformed(
                "WG119",
                f"{file.name} was written on a big-endian machine",
                file=file.name,
                offset=record.offset,
                remedy="Load it with PyTorch and save it again on a little-endian machine.",
            )
        raise malformed(
            "WG103",
            f"{file.name} claims the byte order {value!r:.60}",
            file=file.name,
            offset=record.offset,
        )


def _verified(record: Record, file: CheckpointFile, *, limit: int) -> bytes:
    """Return a record's bytes after their CRC-32 was found right."""
    data = file.read(record.offset, record.nbytes, limit=limit)
    actual = zlib.crc32(data)
    if actual != record.crc32:
        raise malformed(
            "WG113",
            f"the record {record.name!r:.100} has CRC-32 {actual:08x},"
            f" but the archive promises {record.crc32:08x}",
            file=file.name,
            offset=record.offset,
        )
    return data


def _strangers(records: Sequence[Record], file: CheckpointFile) -> list[Finding]:
    return [
        finding(
            "WG105",
            f"the record {record.name!r:.100} belongs to no tensor",
            file=file.name,
            offset=record.offset,
        )
        for record in records
    ]


def _checksums(
    records: Sequence[Record],
    storages: Mapping[str, Record],
    holders: Mapping[str, Sequence[str]],
    file: CheckpointFile,
) -> Iterator[StoredChecksum]:
    """Yield the CRC-32 of each record, with the tensors that lie in it."""
    keys = {record.name: key for key, record in storages.items()}
    for record in records:
        yield _checksum(record, file, holders.get(keys.get(record.name, ""), ()))


def _checksum(record: Record, file: CheckpointFile, tensors: Sequence[str]) -> StoredChecksum:
    return StoredChecksum(
        file=file,
        offset=record.offset,
        nbytes=record.nbytes,
        algorithm="crc32",
        expected=f"{record.crc32:08x}",
        rule="WG113",
        record=record.name,
        tensors=tensors,
    )
