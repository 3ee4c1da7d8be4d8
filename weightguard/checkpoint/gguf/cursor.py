"""A cursor over a GGUF header: little-endian numbers, strings and arrays, read without trust.

Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3. Strings are a 64-bit length
and bytes; arrays a 32-bit element type, a 64-bit count and the elements. What is not wanted is
skipped by moving the position, so that a vocabulary costs neither memory nor objects.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.names import shown
from weightguard.errors import CheckpointError, malformed

MAX_STRING_BYTES = 256 << 20
"""One string; whole tokenizer descriptions are stored as one, of some ten megabytes."""

MAX_ARRAY_ELEMENTS = 1 << 28
"""One array of numbers."""

MAX_WALKED_ELEMENTS = 1 << 22
"""Strings and inner arrays of all arrays of one file; real vocabularies have 2^18 strings."""

MAX_ARRAY_DEPTH = 4
"""Arrays within arrays; real files have none."""

MAX_COPIED_BYTES = 256 << 20
"""Names, keys and values copied out of one file, all together."""

MAX_HEADER_BYTES = 1 << 30
"""All of a header; real ones take some ten megabytes, most of them vocabulary."""

WINDOW_BYTES = 64 << 10
"""The buffer that the header is read through."""

STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<B"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
"""Value types of fixed size, by their number; BOOL is a byte."""

INTEGERS = frozenset((0, 1, 2, 3, 4, 5, 10, 11))
UINT32 = 4

Number: TypeAlias = int | float

_U32, _U64 = NUMBERS[UINT32], NUMBERS[10]


class Cursor:
    """Reads a GGUF file from ``position`` on. Not safe to share by threads.

    Every method raises CheckpointError: WG102 where the file ends early, WG116 above a limit.
    """

    def __init__(self, file: CheckpointFile):
        self.file = file
        self.position = 0
        self._window = bytearray(WINDOW_BYTES)
        self._base = 0
        self._ready = 0
        self._copies_left = MAX_COPIED_BYTES
        self._walks_left = MAX_WALKED_ELEMENTS

    def u32(self) -> int:
        """Read an unsigned 32-bit integer."""
        return int(self.number(_U32))

    def u64(self) -> int:
        """Read an unsigned 64-bit integer."""
        return int(self.number(_U64))

    def number(self, form: struct.Struct) -> Number:
        """Read one number of ``form``."""
        index = self._reach(form.size)
        (value,) = form.unpack_from(self._window, index)
        self.position += form.size
        number: Number = value
        return number

    def text(self, what: str, *, most: int, keep: int | None = None) -> tuple[bytes, int]:
        """Read a string of at most ``most`` bytes; return its first ``keep`` bytes and its length.

        ``what`` names it in an error.
        """
        start = self.position
        length = self.u64()
        if length > most:
            raise self.error("WG116", start, f"{what} of {length} bytes")
        kept = length if keep is None else min(length, keep)
        self._copies_left -= kept
        if self._copies_left < 0:
            raise self.error("WG116", start, f"names of more than {MAX_COPIED_BYTES} bytes in all")
        end = self._end(length, what)
        data = self._copy(kept)
        self.position = end
        return data, length

    def skip_array(self) -> None:
        """Move past an array, whose elements are not looked at.

        Raises CheckpointError with WG103 for an unknown element type.
        """
        self._skip_array(1)

    def error(self, code: str, offset: int, what: str) -> CheckpointError:
        """Return the error to raise where the file has ``what`` at byte ``offset``."""
        name = self.file.name
        return malformed(
            code, f"{shown(name)} has {what} at byte {offset}", file=name, offset=offset
        )

    def _skip_array(self, depth: int) -> None:
        start = self.position
        kind, count = self.u32(), self.u64()
        if kind in NUMBERS:
            if count > MAX_ARRAY_ELEMENTS:
                raise self.error("WG116", start, f"an array of {count} numbers")
            self.position = self._end(count * NUMBERS[kind].size, "an array")
            return
        if kind not in (STRING, ARRAY):
            raise self.error("WG103", start, f"an array of the unknown type {kind}")
        self._walks_left -= count
        if self._walks_left < 0:
            raise self.error("WG116", start, f"an array of {count} elements")
        if kind == STRING:
            self._skip_strings(count)
            return
        if depth == MAX_ARRAY_DEPTH:
            raise self.error("WG116", start, f"arrays nested more than {MAX_ARRAY_DEPTH} deep")
        for _ in range(count):
            self._skip_array(depth + 1)

    def _skip_strings(self, count: int) -> None:
        unpack = _U64.unpack_from
        while count:
            first = index = self._reach(_U64.size)
            window, last = self._window, self._ready - self._base - _U64.size
            while count and index <= last:
                first = index
                index += _U64.size + unpack(window, index)[0]
                count -= 1
            # only the last string of a window can lead out of it
            self.position = self._base + first
            length = self.u64()
            if length > MAX_STRING_BYTES:
                raise self.error("WG116", self.position - 8, f"a string of {length} bytes")
            self.position = self._end(length, "a string")

    def _end(self, length: int, what: str) -> int:
        end = self.position + length
        if end > self.file.size:
            raise self._truncated(end, what)
        if end > MAX_HEADER_BYTES:
            raise self.error(
                "WG116", self.position, f"a header of more than {MAX_HEADER_BYTES} bytes"
            )
        return end

    def _copy(self, length: int) -> bytes:
        index = self.position - self._base
        if index >= 0 and self.position + length <= self._ready:
            return bytes(self._window[index : index + length])
        return self.file.read(self.position, length, limit=MAX_COPIED_BYTES)

    def _reach(self, length: int) -> int:
        """Return the index in the window of the next ``length`` bytes."""
        position = self.position
        if position < self._base or position + length > self._ready:
            self._end(length, "a number")
            count = min(WINDOW_BYTES, self.file.size - position)
            self.file.read_into(position, memoryview(self._window)[:count])
            self._base, self._ready = position, position + count
        return position - self._base

    def _truncated(self, end: int, what: str) -> CheckpointError:
        file = self.file
        words = f"but {what} at byte {self.position} needs {end}"
        return malformed(
            "WG102",
            f"{shown(file.name)} has {file.size} bytes, {words}",
            file=file.name,
            offset=file.size,
        )
