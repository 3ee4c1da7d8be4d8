"""External data of ONNX tensors: files beside the model, opened once, links refused.

Source: TensorProto.external_data in onnx.proto. Runtimes follow symbolic links inside the folder
and hard links to anywhere, and then read a file the publisher did not ship, so both are refused;
only a Hugging Face cache snapshot, which is made of links, may hold them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from msgspec.structs import replace

from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.checkpoint.names import shown
from weightguard.errors import CheckpointError, malformed
from weightguard.finding import Finding, finding
from weightguard.units import counted

MAX_LOCATION_CHARS = 1024
"""A longer file name is longer than any file system's."""

MAX_EXTERNAL_FILES = 16_384
"""Files of external data; exporters write up to one per tensor."""

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Extent:
    """A tensor's bytes in an external file, ``start`` to ``end``."""

    name: str
    file: CheckpointFile
    start: int
    end: int


class ExternalFiles:
    """The files that the tensors of one ONNX file lie in."""

    def __init__(self, model: CheckpointFile, folder: Folder):
        self._model = model
        self._folder = folder
        self._opened: dict[str, CheckpointFile] = {}

    def locate(
        self, entries: Mapping[str, str], nbytes: int, tensor: str, place: int
    ) -> tuple[CheckpointFile, int]:
        """Return the file and offset of ``tensor``, which takes ``nbytes`` bytes.

        ``entries`` are its external_data pairs, ``place`` the offset of its TensorProto. Raises
        CheckpointError: WG110 for a location or link out of the folder, and for any link where
        the folder is no cache snapshot; WG122 where the file is missing, WG102 where it ends
        early; WG103, WG106 and WG107 for a location, offset or length that is missing, malformed
        or wrong.
        """
        name = self._location(entries.get("location", ""), tensor, place)
        offset = self._number(entries, "offset", 0, tensor, place)
        length = self._number(entries, "length", nbytes, tensor, place)
        if length != nbytes:
            what = f"an external length of {length} where its shape needs {nbytes}"
            raise self._error("WG107", tensor, place, what)
        file = self._open(name, tensor, place)
        if offset > file.size:
            what = f"the external offset {offset} in a file of {file.size} bytes"
            raise self._error("WG106", tensor, place, what)
        if offset + nbytes > file.size:
            raise malformed(
                "WG102",
                f"{shown(name)} has {file.size} bytes, but tensor {shown(tensor)} ends at "
                f"{offset + nbytes}",
                file=name,
                offset=file.size,
                tensor=tensor,
            )
        return file, offset

    def _location(self, location: str, tensor: str, place: int) -> str:
        if not location:
            raise self._error("WG103", tensor, place, "external data without a location")
        if len(location) > MAX_LOCATION_CHARS:
            what = f"the external location {shown(location)}, which is no file name"
            raise self._error("WG115", tensor, place, what)
        return str(PurePosixPath(self._model.name).parent / location)

    def _number(
        self, entries: Mapping[str, str], key: str, default: int, tensor: str, place: int
    ) -> int:
        text = entries.get(key)
        if text is None:
            return default
        if not _DECIMAL.fullmatch(text):
            what = f"the external {key} {shown(text)}, which is {_flaw(text)}"
            raise self._error("WG106", tensor, place, what)
        return int(text)

    def _open(self, name: str, tensor: str, place: int) -> CheckpointFile:
        known = self._opened.get(name)
        if known is not None:
            return known
        if len(self._opened) == MAX_EXTERNAL_FILES:
            what = f"external data in more than {MAX_EXTERNAL_FILES} files"
            raise self._error("WG116", tensor, place, what)
        real = self._resolve(name, tensor)
        if real == self._model.path.resolve():
            raise self._error("WG105", tensor, place, "external data in the model file itself")
        if self._folder.blobs is None:
            self._refuse_links(name, real, tensor)
        file = self._folder.open(name)
        self._opened[name] = file
        return file

    def _resolve(self, name: str, tensor: str) -> Path:
        try:
            return self._folder.resolve(name)
        except CheckpointError as error:
            found = error.finding
            message = f"{found.message}; the data of tensor {shown(tensor)} should be there"
            place = replace(found.location, tensor=tensor)
            raise CheckpointError(replace(found, message=message, location=place)) from error

    def _refuse_links(self, name: str, real: Path, tensor: str) -> None:
        if real != self._folder.root.resolve() / name:
            what = "is reached through a symbolic link"
        elif real.stat().st_nlink > 1 and real.is_file():
            what = "has a second name (a hard link)"
        else:
            return
        message = f"{shown(name)}, the external data of tensor {shown(tensor)}, {what}"
        raise malformed(
            "WG110",
            message,
            file=name,
            tensor=tensor,
            remedy="Put a copy of the file in the link's place, if its content is trusted.",
        )

    def _error(self, code: str, tensor: str, place: int, what: str) -> CheckpointError:
        message = f"tensor {shown(tensor)} has {what}"
        return malformed(code, message, file=self._model.name, offset=place, tensor=tensor)


def _flaw(text: str) -> str:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()):
        return "no decimal number"
    if digits != text:
        return "negative"
    return "written with leading zeros" if text.startswith("0") else "too large"


def overlaps(extents: Iterable[Extent]) -> list[Finding]:
    """Return one WG105 finding for each file in which tensors share some of their bytes."""
    by_file: defaultdict[str, list[Extent]] = defaultdict(list)
    for extent in extents:
        if extent.end > extent.start:
            by_file[str(extent.file.path)].append(extent)
    found = []
    for group in by_file.values():
        clashes = _clashes(group)
        if clashes:
            found.append(_overlap(clashes))
    return found


def _clashes(extents: list[Extent]) -> list[tuple[Extent, Extent]]:
    extents.sort(key=lambda e: (e.start, e.end, e.name))
    clashes = []
    widest = extents[0]
    for extent in extents[1:]:
        if extent.start < widest.end:
            clashes.append((widest, extent))
        if extent.end > widest.end:
            widest = extent
    return clashes


def _overlap(clashes: list[tuple[Extent, Extent]]) -> Finding:
    first, second = clashes[0]
    message = (
        f"tensor {shown(second.name)} starts at byte {second.start} of {shown(first.file.name)}, "
        f"inside {shown(first.name)}, which ends at {first.end}; "
        f"{counted(len(clashes), 'such overlap')}"
    )
    return finding(
        "WG105",
        message,
        file=first.file.name,
        offset=second.start,
        tensor=second.name,
        evidence={"overlaps": len(clashes)},
    )
