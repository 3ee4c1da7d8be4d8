"""The protobuf wire format, read from a file without trusting a length and without the payloads.

Source: the Protocol Buffers encoding guide. A message is a sequence of *fields*: a tag (field
number << 3 | wire type, a varint) and a payload. Only tags and lengths are read; a payload is
skipped by moving the position. Groups (wire types 3 and 4) are refused: ONNX has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from weightguard.checkpoint.files import CheckpointFile
from weightguard.errors import CheckpointError, malformed

MAX_VARINT_BYTES = 10
"""What 64 bits need in groups of seven."""

MAX_FIELDS = 20_000_000
"""Fields read of one file; a graph of 100,000 nodes has about two million."""

MAX_COPIED_BYTES = 256 << 20
"""Names and unpacked values copied out of one file, all together."""

MAX_TEXT_BYTES = 2 << 20
"""One string; real names stay below a kilobyte."""

MAX_MERGED_PARTS = 65_536
"""Parts of one message, or repeated messages inside one attribute."""

WINDOW_BYTES = 64 << 10
"""The buffer that tags and lengths are read through."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

_HEADER_BYTES = 2 * MAX_VARINT_BYTES
_PADDING = bytes(_HEADER_BYTES)
_MAX_TAG = (1 << 32) - 1

Span: TypeAlias = tuple[int, int]
"""File offsets of the first byte and past the last one."""

Message: TypeAlias = Sequence[Span]
"""A message as the spans of its occurrences: protobuf merges them by concatenation."""

Field: TypeAlias = tuple[int, int, int]
"""Tag, file offset of the payload, and the value (varints) or the payload's end (all others)."""


def tag(number: int, wire_type: int) -> int:
    """Return the tag of field ``number`` with ``wire_type``, as ``Wire.fields`` yields it."""
    return number << 3 | wire_type


def signed(value: int) -> int:
    """Return a varint's 64 bits read as an int64."""
    return value - (1 << 64) if value >> 63 else value


def encoded(value: int) -> bytes:
    """Return the varint of an unsigned 64-bit ``value``."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Wire:
    """A cursor over the fields of messages in one file.

    Budgets for fields and for copied bytes are shared by everything read through one Wire, so
    that nested and repeated messages cannot multiply them. Not safe to share by threads.
    """

    def __init__(self, file: CheckpointFile):
        self.file = file
        self._window = bytearray(WINDOW_BYTES + _HEADER_BYTES)
        self._base = 0
        self._stop = 0
        self._ready = 0
        self._fields_left = MAX_FIELDS
        self._bytes_left = MAX_COPIED_BYTES

    def fields(self, message: Message) -> Iterator[Field]:
        """Yield the fields of ``message`` in order; other messages may be read in between.

        Raises CheckpointError: WG102 where the file ends early, WG103 where a tag, varint or
        length is illegal or leads out of the message, WG116 above ``MAX_FIELDS``.
        """
        for start, end in message:
            position = start
            while position < end:
                field, position = self._field(position, end)
                yield field

    def text(self, span: Span, what: str) -> str:
        """Return the UTF-8 string at ``span``; ``what`` names it in an error.

        Raises CheckpointError: WG116 above ``MAX_TEXT_BYTES``, WG103 for other encodings.
        """
        start, end = span
        if end - start > MAX_TEXT_BYTES:
            raise self.error("WG116", start, f"{what} of {end - start} bytes")
        try:
            return self.copy(start, end).decode()
        except UnicodeDecodeError:
            raise self.error("WG103", start, f"{what} that is not UTF-8") from None

    def copy(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` to ``end``; WG116 above ``MAX_COPIED_BYTES`` in all."""
        self._bytes_left -= end - start
        if self._bytes_left < 0:
            what = f"strings and unpacked values of more than {MAX_COPIED_BYTES} bytes"
            raise self.error("WG116", start, what)
        if self._base <= start and end <= self._stop:
            return bytes(self._window[start - self._base : end - self._base])
        return self.file.read(start, end - start, limit=MAX_COPIED_BYTES)

    def varints(self, span: Span, limit: int) -> list[int]:
        """Return the unsigned varints of the packed field at ``span``.

        Raises CheckpointError: WG116 for more than ``limit`` of them, WG103 where the last one
        runs out of the field.
        """
        position, end = span
        values: list[int] = []
        while position < end:
            if len(values) == limit:
                raise self.error("WG116", position, f"more than {limit} values")
            self._reach(position)
            value, index = self._varint(position - self._base)
            values.append(value)
            position = self._base + index
        if position > end:
            raise self.error("WG103", end, "a varint that leads out of its field")
        return values

    def error(self, code: str, offset: int, what: str) -> CheckpointError:
        """Return the error to raise where the file has ``what`` at byte ``offset``."""
        name = self.file.name
        return malformed(code, f"{name} has {what} at byte {offset}", file=name, offset=offset)

    def _field(self, position: int, end: int) -> tuple[Field, int]:
        if not self._base <= position < self._ready:
            self._reach(position)
        self._fields_left -= 1
        if self._fields_left < 0:
            raise self.error("WG116", position, f"more than {MAX_FIELDS} fields")
        window, base = self._window, self._base
        index = position - base
        key = window[index]
        index += 1
        if key > 0x7F:
            key, index = self._varint(index - 1)
        kind = key & 7
        if kind in (LENGTH, VARINT):
            payload = index
            value = window[index]
            index += 1
            if value > 0x7F:
                value, index = self._varint(payload)
            if kind == LENGTH:
                payload = index
                value += base + index
                after = value
            else:
                after = base + index
        else:
            payload = index
            value = after = base + index + self._fixed(kind, position)
        if after > end or not 8 <= key <= _MAX_TAG:
            raise self._broken(position, after, end)
        return (key, base + payload, value), after

    def _fixed(self, kind: int, position: int) -> int:
        if kind == FIXED32:
            return 4
        if kind == FIXED64:
            return 8
        raise self.error("WG103", position, f"a field of the refused wire type {kind}")

    def _varint(self, index: int) -> tuple[int, int]:
        window = self._window
        value = 0
        for step in range(MAX_VARINT_BYTES):
            byte = window[index + step]
            value |= (byte & 0x7F) << (7 * step)
            if byte < 0x80:
                if value >> 64:
                    break
                return value, index + step + 1
        raise self.error("WG103", self._base + index, "a varint of more than 64 bits")

    def _reach(self, position: int) -> None:
        if self._base <= position < self._ready:
            return
        count = max(0, min(WINDOW_BYTES, self.file.size - position))
        self.file.read_into(position, memoryview(self._window)[:count])
        # zeros end a varint that the file's end cut, so that it shows as leading out
        self._window[count : count + _HEADER_BYTES] = _PADDING
        self._base = position
        self._stop = position + count
        at_end = self._stop >= self.file.size
        self._ready = self._stop if at_end else self._stop - _HEADER_BYTES

    def _broken(self, position: int, after: int, end: int) -> CheckpointError:
        if after <= end:
            return self.error("WG103", position, "a field with an illegal number")
        if end == self.file.size:
            return malformed(
                "WG102",
                f"{self.file.name} has {end} bytes, but its field at byte {position} needs {after}",
                file=self.file.name,
                offset=position,
            )
        return self.error("WG103", position, f"a field {after - end} bytes longer than its message")
