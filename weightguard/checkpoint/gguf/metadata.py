"""The key-value pairs of a GGUF header: scalars and the beginnings of strings; arrays are skipped.

Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.gguf.cursor import (
    ARRAY,
    BOOL,
    INTEGERS,
    MAX_STRING_BYTES,
    NUMBERS,
    STRING,
    UINT32,
    Cursor,
)
from weightguard.checkpoint.names import shown
from weightguard.errors import CheckpointError, malformed
from weightguard.finding import Finding, finding
from weightguard.units import counted

MAX_METADATA_ENTRIES = 65_536
"""Key-value pairs; real files have about forty."""

MAX_TENSORS = 1 << 18
"""Tensors of one file; models with every expert apart have some 50,000."""

MAX_KEY_BYTES = 65_535
"""The limit of the format."""

MAX_ALIGNMENT = 1 << 16
"""The largest page of common machines; the default is 32."""

MAX_KEPT_BYTES = 1024
"""Longer strings are cut to this in the metadata that callers see."""

MAX_FINDINGS = 1000
"""Findings about one file; further ones are only counted."""

DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
VERSIONS = (2, 3)

_MAGIC, _REVERSED_MAGIC = b"GGUF", b"FUGG"
_ENTRY_BYTES = 8 + 4 + 1
_INFO_BYTES = 8 + 4 + 4 + 8
_CONVERT_ENDIAN = "Convert it with gguf-convert-endian of the gguf package."
_CONVERT_VERSION = "Convert the model again with a current llama.cpp."


class FindingLog:
    """Findings about one file, so many that a hostile one cannot fill memory with them."""

    def __init__(self, file: CheckpointFile):
        self._file = file
        self._findings: list[Finding] = []
        self._dropped = 0

    def add(self, code: str, message: str, *, offset: int, tensor: str | None = None) -> None:
        """Record a finding at byte ``offset``, or count it where there are too many."""
        if len(self._findings) == MAX_FINDINGS:
            self._dropped += 1
            return
        name = self._file.name
        self._findings.append(finding(code, message, file=name, offset=offset, tensor=tensor))

    def close(self) -> tuple[Finding, ...]:
        """Return the findings, the last of which says how many were left out."""
        if self._dropped:
            message = (
                f"{shown(self._file.name)} has {counted(self._dropped, 'more contradiction')}, "
                "not listed"
            )
            self._findings.append(finding("WG103", message, file=self._file.name))
        return tuple(self._findings)


@dataclass(frozen=True, slots=True)
class Value:
    """A scalar value or the beginning of a string, its type's number and its place."""

    kind: int
    value: int | float | bool | str
    offset: int

    def shown(self) -> str:
        """Return the value as text."""
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What precedes the tensors: their number, the alignment of their data, and the metadata."""

    version: int
    tensors: int
    alignment: int
    values: dict[str, Value]


def read_header(cursor: Cursor, log: FindingLog) -> GgufHeader:
    """Read magic, version, counts and metadata, and leave ``cursor`` at the first tensor.

    Raises CheckpointError: WG101 without the magic, WG119 for version 1, later versions and
    big-endian files, WG102 where the file ends early, WG103 for a value of unknown type and an
    alignment that is none, WG116 above a limit.
    """
    version = _version(cursor)
    start = cursor.position
    tensors, entries = cursor.u64(), cursor.u64()
    for count, most, least_bytes, what in (
        (tensors, MAX_TENSORS, _INFO_BYTES, "tensors"),
        (entries, MAX_METADATA_ENTRIES, _ENTRY_BYTES, "key-value pairs"),
    ):
        if count > most:
            raise cursor.error("WG116", start, f"{count} {what} in its header")
        if cursor.position + count * least_bytes > cursor.file.size:
            raise _ends_early(cursor, f"{count} {what}")
    values: dict[str, Value] = {}
    seen: set[str] = set()
    for _ in range(entries):
        at = cursor.position
        key, value = _entry(cursor, log)
        if key in seen:
            log.add("WG103", f"{shown(cursor.file.name)} repeats the key {shown(key)}", offset=at)
        elif value is not None:
            values[key] = value
        seen.add(key)
    return GgufHeader(version, tensors, _alignment(cursor, values, ALIGNMENT_KEY in seen), values)


def decode(data: bytes, what: str, at: int, log: FindingLog) -> str:
    """Return ``data`` as text; bytes that are not UTF-8 are escaped and recorded as WG103."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        text = data.decode(errors="backslashreplace")
        log.add("WG103", f"{what} {shown(text)} is not UTF-8", offset=at)
        return text


def _version(cursor: Cursor) -> int:
    file = cursor.file
    magic = file.read(0, min(4, file.size), limit=4)
    if magic == _REVERSED_MAGIC:
        raise _unsupported(cursor, "is a big-endian GGUF file", _CONVERT_ENDIAN)
    if magic != _MAGIC:
        raise malformed("WG101", f"{shown(file.name)} is no GGUF file", file=file.name, offset=0)
    cursor.position = 4
    version = cursor.u32()
    if version in VERSIONS:
        return version
    if version and not version & 0xFFFF:
        raise _unsupported(cursor, "is a big-endian GGUF file", _CONVERT_ENDIAN)
    if version == 0:
        raise cursor.error("WG103", 4, "the version 0")
    remedy = _CONVERT_VERSION if version == 1 else "Update weightguard, or write version 3."
    raise _unsupported(cursor, f"is of version {version} of GGUF; 2 and 3 are read", remedy)


def _entry(cursor: Cursor, log: FindingLog) -> tuple[str, Value | None]:
    at = cursor.position
    key, _ = cursor.text("a key", most=MAX_KEY_BYTES)
    name = decode(key, "the key", at, log)
    at = cursor.position
    kind = cursor.u32()
    if kind in NUMBERS:
        return name, _number(cursor, kind, name, log)
    if kind == STRING:
        return name, Value(kind, _string(cursor, name, log), at)
    if kind == ARRAY:
        cursor.skip_array()
        return name, None
    raise cursor.error("WG103", at, f"a value of the unknown type {kind}")


def _number(cursor: Cursor, kind: int, name: str, log: FindingLog) -> Value:
    at = cursor.position
    number = cursor.number(NUMBERS[kind])
    if kind != BOOL:
        return Value(kind, number, at)
    if number not in (0, 1):
        log.add("WG103", f"the truth value {shown(name)} is {number}", offset=at)
    return Value(kind, bool(number), at)


def _string(cursor: Cursor, name: str, log: FindingLog) -> str:
    at = cursor.position
    what = f"a value of {shown(name)}"
    data, length = cursor.text(what, most=MAX_STRING_BYTES, keep=MAX_KEPT_BYTES)
    if length == len(data):
        return decode(data, f"the value of {shown(name)}", at, log)
    return data.decode(errors="ignore") + "..."


def _alignment(cursor: Cursor, values: dict[str, Value], present: bool) -> int:
    if not present:
        return DEFAULT_ALIGNMENT
    found = values.get(ALIGNMENT_KEY)
    if found is None or found.kind != UINT32:
        at = found.offset if found else 0
        raise cursor.error("WG103", at, f"a value of {ALIGNMENT_KEY} that is not of type uint32")
    alignment = int(found.value)
    if alignment.bit_count() != 1:
        what = f"the alignment {alignment}, which is not a power of two,"
        raise cursor.error("WG103", found.offset, what)
    if alignment > MAX_ALIGNMENT:
        raise cursor.error("WG116", found.offset, f"the alignment {alignment}")
    return alignment


def integer(header: GgufHeader, key: str) -> int | None:
    """Return the value of ``key`` where it is an integer, else None."""
    found = header.values.get(key)
    return int(found.value) if found is not None and found.kind in INTEGERS else None


def _unsupported(cursor: Cursor, words: str, remedy: str) -> CheckpointError:
    name = cursor.file.name
    return malformed("WG119", f"{shown(name)} {words}", file=name, offset=4, remedy=remedy)


def _ends_early(cursor: Cursor, what: str) -> CheckpointError:
    file = cursor.file
    message = f"{shown(file.name)} has {file.size} bytes, too few for the {what} it lists"
    return malformed("WG102", message, file=file.name, offset=file.size)
