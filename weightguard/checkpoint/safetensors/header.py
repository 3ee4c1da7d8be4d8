"""The JSON header of a safetensors file, read entry by entry.

The header is one object from tensor name to ``{"dtype", "shape", "data_offsets"}``, with an
optional ``__metadata__`` of strings. Each value is decoded by itself: a header of 100 MB that is
one array of arrays would cost gigabytes if it were decoded whole, and a value's place in the
file would be lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.names import shown
from weightguard.errors import CheckpointError, malformed
from weightguard.finding import Finding, finding

MAX_ENTRY_CHARS = 8192
"""64 dimensions of 19 digits, pretty-printed, need less than half of it."""

MAX_METADATA_VALUE_CHARS = 65_536
"""A metadata value that is no string is skipped up to this length."""

MAX_METADATA_ENTRIES = 100_000
"""Trainers that record every setting write some hundred."""

METADATA = "__metadata__"
HEADER_START = 8

_KEYS = frozenset(("dtype", "shape", "data_offsets"))
_space = re.compile(r"[ \t\n\r]*").match


class Entry(NamedTuple):
    """One tensor as the header states it; values are of any JSON type, ``place`` a text index."""

    name: str
    dtype: Any
    shape: Any
    data_offsets: Any
    place: int


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _same(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return pairs


_DECODER = json.JSONDecoder(object_pairs_hook=_same, parse_constant=_refuse)


class Header:
    """A header's text, and what reading ``entries()`` to their end leaves: metadata, findings."""

    def __init__(self, file: CheckpointFile, data: bytes):
        self._file = file
        self.nbytes = len(data)
        self.metadata: dict[str, str] = {}
        self.findings: list[Finding] = []
        self._metadata_seen = self._odd_metadata = self._odd_keys = False
        if not data.startswith(b"{"):
            raise malformed(
                "WG103",
                f"the header of {shown(file.name)} does not begin with '{{'",
                file=file.name,
                offset=HEADER_START,
            )
        try:
            self._text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise malformed(
                "WG103",
                f"the header of {shown(file.name)} is not UTF-8",
                file=file.name,
                offset=HEADER_START + error.start,
            ) from error

    def entries(self) -> Iterator[Entry]:
        """Yield every tensor in header order, repeated names included.

        Raises CheckpointError (WG103) where the JSON is malformed or an entry lacks a key.
        """
        place = self._skip(1)
        closed = self._text.startswith("}", place)
        while not closed:
            name, place = self._key(place)
            if name == METADATA:
                place = self._read_metadata(place)
            else:
                entry, place = self._entry(name, place)
                yield entry
            place, closed = self._next(place)
        self._check_padding(place + 1)

    def error(
        self, code: str, place: int, words: str, tensor: str | None = None
    ) -> CheckpointError:
        """Return the error for the text at index ``place``."""
        return malformed(
            code, words, file=self._file.name, offset=self.offset(place), tensor=tensor
        )

    def offset(self, place: int) -> int:
        """Return the file offset of the text at index ``place``."""
        return HEADER_START + len(self._text[:place].encode("utf-8"))

    def _skip(self, place: int) -> int:
        match = _space(self._text, place)
        return place if match is None else match.end()

    def _invalid(self, place: int, words: str) -> CheckpointError:
        return self.error("WG103", place, f"the header of {shown(self._file.name)} {words}")

    def _next(self, place: int) -> tuple[int, bool]:
        """Step over the comma after a value; also say whether the object is closed instead."""
        place = self._skip(place)
        if self._text.startswith(",", place):
            return self._skip(place + 1), False
        if self._text.startswith("}", place):
            return place, True
        raise self._invalid(place, "is not valid JSON: a comma or '}' is missing")

    def _key(self, place: int) -> tuple[str, int]:
        """Return the key at ``place`` and where its value begins."""
        key, after = self._string(place)
        after = self._skip(after)
        if not self._text.startswith(":", after):
            raise self._invalid(after, "is not valid JSON: a colon is missing")
        return key, self._skip(after + 1)

    def _string(self, place: int) -> tuple[str, int]:
        if not self._text.startswith('"', place):
            raise self._invalid(place, "is not valid JSON: a string is missing")
        value, after = self._decode(self._text, place, 0)
        if not value.isascii():
            self._require_unicode(value, place)
        return value, after

    def _decode(self, text: str, start: int, base: int) -> tuple[Any, int]:
        """Decode the value at ``start`` of ``text``, which begins at ``base`` of the header."""
        try:
            return _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            at = error.pos if isinstance(error, json.JSONDecodeError) else start
            words = "nested too deep" if isinstance(error, RecursionError) else str(error)[:80]
            raise self._invalid(base + at, f"is not valid JSON: {words}") from error

    def _require_unicode(self, value: str, place: int) -> None:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise self._invalid(place, "escapes half a character") from error

    def _entry(self, name: str, place: int) -> tuple[Entry, int]:
        # an entry holds no object and no string with a brace, so the first brace ends it
        end = self._text.find("}", place, place + MAX_ENTRY_CHARS) + 1
        if not self._text.startswith("{", place) or not end:
            raise self.error("WG103", place, f"{shown(name)} has no entry of usual form", name)
        chunk = self._text[place:end]
        pairs, after = self._decode(chunk, 0, place)
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise self.error("WG103", place, f"the entry of {shown(name)} repeats a key", name)
        if not fields.keys() >= _KEYS:
            missing = ", ".join(sorted(_KEYS - fields.keys()))
            raise self.error("WG103", place, f"the entry of {shown(name)} lacks {missing}", name)
        if len(fields) > len(_KEYS):
            self._note_odd_key(name, fields, place)
        elif "-0" in chunk:
            raise self.error("WG103", place, f"the entry of {shown(name)} has a signed zero", name)
        entry = Entry(name, fields["dtype"], fields["shape"], fields["data_offsets"], place)
        return entry, place + after

    def _note_odd_key(self, name: str, fields: dict[str, Any], place: int) -> None:
        if self._odd_keys:
            return
        self._odd_keys = True
        odd = shown(min(fields.keys() - _KEYS))
        self.findings.append(
            finding(
                "WG103",
                f"the entry of {shown(name)} has the key {odd}, which the format does not define",
                file=self._file.name,
                offset=self.offset(place),
                tensor=name,
            )
        )

    def _read_metadata(self, place: int) -> int:
        """Read ``__metadata__`` at ``place`` and return where it ends."""
        if self._metadata_seen:
            self._note_odd_metadata(place, "occurs twice")
        self._metadata_seen = True
        if not self._text.startswith("{", place):
            self._note_odd_metadata(place, "is no object of strings")
            return self._step_over(place)
        place = self._skip(place + 1)
        closed = self._text.startswith("}", place)
        count = 0
        while not closed:
            if count == MAX_METADATA_ENTRIES:
                words = f"{METADATA} has more than {MAX_METADATA_ENTRIES} entries"
                raise self.error("WG116", place, words)
            count += 1
            place = self._read_metadata_value(place)
            place, closed = self._next(place)
        return place + 1

    def _read_metadata_value(self, start: int) -> int:
        key, place = self._key(start)
        if not self._text.startswith('"', place):
            self._note_odd_metadata(place, f"holds more than strings: {shown(key)}")
            return self._step_over(place)
        value, after = self._string(place)
        if key in self.metadata:
            self._note_odd_metadata(start, f"repeats the key {shown(key)}")
        self.metadata.setdefault(key, value)
        return after

    def _step_over(self, place: int) -> int:
        window = self._text[place : place + MAX_METADATA_VALUE_CHARS]
        return place + self._decode(window, 0, place)[1]

    def _note_odd_metadata(self, place: int, words: str) -> None:
        if self._odd_metadata:
            return
        self._odd_metadata = True
        self.findings.append(
            finding(
                "WG103",
                f"{METADATA} of {shown(self._file.name)} {words}",
                file=self._file.name,
                offset=self.offset(place),
            )
        )

    def _check_padding(self, place: int) -> None:
        tail = self._text[place:]
        if tail.strip(" "):
            first = place + len(tail) - len(tail.lstrip(" "))
            self.findings.append(
                finding(
                    "WG103",
                    f"the header of {shown(self._file.name)} goes on after its closing brace with "
                    f"{shown(tail.lstrip(' '))}; only spaces may follow",
                    file=self._file.name,
                    offset=self.offset(first),
                )
            )
