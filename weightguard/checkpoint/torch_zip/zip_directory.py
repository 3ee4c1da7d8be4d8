"""The zip directory of a PyTorch archive, read so that no second reader can see other records.

Every byte before the directory must belong to exactly one record, and each record's local header
must repeat its directory entry. Source: PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from weightguard.checkpoint.files import CheckpointFile
from weightguard.errors import CheckpointError, malformed
from weightguard.units import counted

MAX_RECORDS = 1 << 18
MAX_DIRECTORY_BYTES = 64 << 20
MAX_COMMENT_BYTES = 0xFFFF
MAX_NAME_BYTES = 4096

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_END_MARK, _END64_MARK, _LOCATOR_MARK = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY_MARK, _LOCAL_MARK, _DESCRIPTOR_MARK = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_EXTRA = 1
_DESCRIPTOR, _UTF8 = 1 << 3, 1 << 11
_ENCRYPTION = 1 << 0 | 1 << 6 | 1 << 13
_DESCRIPTORS = {
    12: struct.Struct("<3I"),
    16: struct.Struct("<4x3I"),
    20: struct.Struct("<I2Q"),
    24: struct.Struct("<4xI2Q"),
}


@dataclass(frozen=True, slots=True)
class Record:
    """A stored record: its name, CRC-32, and where its bytes lie in the file."""

    name: str
    crc32: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the directory: raw name, flags, method, CRC-32, sizes, local header's offset."""

    raw: bytes
    flags: int
    method: int
    crc32: int
    packed: int
    nbytes: int
    header: int

    @property
    def name(self) -> str:
        return self.raw.decode()


class ZipDirectory:
    """The directory of a zip file: the names of all records, and after ``locate`` their places.

    Raises CheckpointError: WG102 for a file without directory, WG116 above a limit, WG117 for
    whatever two zip readers could take differently.
    """

    def __init__(self, file: CheckpointFile):
        self._file = file
        start, size, count = self._extent()
        self.start = start
        data = file.read(start, size, limit=MAX_DIRECTORY_BYTES)
        self._entries = tuple(self._parse(data, count))
        self._check_names()

    @property
    def names(self) -> tuple[str, ...]:
        """The record names in directory order."""
        return tuple(entry.name for entry in self._entries)

    def locate(self) -> dict[str, Record]:
        """Return every record by name, in file order; reads and checks all local headers."""
        ordered = sorted(self._entries, key=lambda entry: entry.header)
        records = {}
        place = 0
        for number, entry in enumerate(ordered):
            following = ordered[number + 1].header if number + 1 < len(ordered) else self.start
            if entry.header != place:
                words = "overlaps the one before" if entry.header < place else "follows a gap"
                raise self._unsafe(f"{entry.name!r:.100} {words}", min(place, entry.header))
            record = self._locate(entry)
            self._check_tail(entry, record.offset + record.nbytes, following)
            records[record.name] = record
            place = following
        if place != self.start:
            raise self._unsafe(
                f"no record holds the last {counted(self.start - place, 'byte')}", place
            )
        return records

    def _extent(self) -> tuple[int, int, int]:
        """Return offset, bytes and number of entries of the directory."""
        end = self._find_end()
        fields = _END.unpack(self._file.read(end, _END.size, limit=_END.size))
        _, disk, first_disk, here, count, size, start, _ = fields
        if (disk, first_disk) != (0, 0) and (disk, first_disk) != (_MAX16, _MAX16):
            raise self._unsafe("the archive spans several disks", end)
        place = end - _LOCATOR.size
        if place >= 0 and self._file.read(place, 4, limit=4) == _LOCATOR_MARK:
            end, wide = self._end64(place)
            narrow = ((here, _MAX16), (count, _MAX16), (size, _MAX32), (start, _MAX32))
            for value, (short, mark) in zip(wide, narrow, strict=True):
                if short not in (value, mark):
                    raise self._unsafe("the zip64 end record contradicts the end record", end)
            here, count, size, start = wide
        if here != count:
            raise self._unsafe("the archive spans several disks", end)
        if count > MAX_RECORDS or size > MAX_DIRECTORY_BYTES:
            raise malformed(
                "WG116",
                f"the zip directory has {count} records and {size} bytes, "
                f"above {MAX_RECORDS} and {MAX_DIRECTORY_BYTES}",
                file=self._file.name,
                offset=end,
            )
        if start + size != end:
            raise self._unsafe(
                f"the directory should end at byte {start + size}, but ends at byte {end}; "
                "something was put before or after it",
                end,
            )
        return start, size, count

    def _find_end(self) -> int:
        size = self._file.size
        if size >= _END.size:
            end = size - _END.size
            last = self._file.read(end, _END.size, limit=_END.size)
            if last[:4] == _END_MARK and last[-2:] == b"\0\0":
                return end
        length = min(size, _END.size + MAX_COMMENT_BYTES)
        tail = self._file.read(size - length, length, limit=length)
        place = tail.rfind(_END_MARK)
        if 0 <= place <= length - _END.size:
            raise self._unsafe("a comment or other bytes follow the end record", size - length)
        raise malformed(
            "WG102",
            f"{self._file.name} ends at byte {size} without a zip directory",
            file=self._file.name,
            offset=size,
        )

    def _end64(self, place: int) -> tuple[int, tuple[int, int, int, int]]:
        """Return the zip64 end record's offset and its counts, size and offset."""
        _, disk, end, disks = _LOCATOR.unpack(self._file.read(place, 20, limit=_LOCATOR.size))
        if disk != 0 or disks > 1:
            raise self._unsafe("the archive spans several disks", place)
        if end != place - _END64.size:
            raise self._unsafe("the zip64 end record is not where its locator says", place)
        fields = _END64.unpack(self._file.read(end, _END64.size, limit=_END64.size))
        mark, length, _, _, disk, first_disk, here, count, size, start = fields
        if mark != _END64_MARK or length != _END64.size - 12:
            raise self._unsafe("the zip64 end record is damaged", end)
        if (disk, first_disk) != (0, 0):
            raise self._unsafe("the archive spans several disks", end)
        return end, (here, count, size, start)

    def _parse(self, data: bytes, count: int) -> Iterator[_Entry]:
        place = 0
        for _ in range(count):
            if place + _ENTRY.size > len(data):
                raise self._unsafe("the directory has fewer entries than it says", self.start)
            fields = _ENTRY.unpack_from(data, place)
            lengths = fields[10:13]
            end = place + _ENTRY.size + sum(lengths)
            if fields[0] != _ENTRY_MARK or end > len(data):
                raise self._unsafe("a directory entry is damaged", self.start + place)
            body = data[place + _ENTRY.size : end]
            yield self._entry(fields, body, self.start + place)
            place = end
        if place != len(data):
            raise self._unsafe("bytes follow the last directory entry", self.start + place)

    def _entry(self, fields: tuple[int, ...], body: bytes, place: int) -> _Entry:
        flags, method, _, _, crc32, packed, nbytes = fields[3:10]
        name_length, extra_length, comment_length, disk = fields[10:14]
        if disk != 0 or comment_length:
            raise self._unsafe("a record has a comment or lies on another disk", place)
        raw = body[:name_length]
        if not _is_name(raw, flags):
            raise self._unsafe(f"the record name {raw!r:.100} reads differently elsewhere", place)
        if flags & ~(_DESCRIPTOR | _UTF8 | _ENCRYPTION | 0b110):
            raise self._unsafe(f"{raw!r:.100} has the unknown flags {flags:#06x}", place)
        extra = self._zip64(body[name_length : name_length + extra_length], place)
        # the zip64 field holds, in this order, just the values that are marked as missing
        marked = [value == _MAX32 for value in (nbytes, packed, fields[16])]
        if extra is None:
            return _Entry(raw, flags, method, crc32, packed, nbytes, fields[16])
        if len(extra) != 8 * sum(marked):
            raise self._unsafe(f"{raw!r:.100} has a zip64 field of the wrong size", place)
        wide = iter(struct.unpack(f"<{sum(marked)}Q", extra))
        nbytes, packed, header = (
            next(wide) if mark else value
            for value, mark in zip((nbytes, packed, fields[16]), marked, strict=True)
        )
        return _Entry(raw, flags, method, crc32, packed, nbytes, header)

    def _zip64(self, extra: bytes, offset: int) -> bytes | None:
        """Return the zip64 field of the extra fields, or None."""
        found, place = None, 0
        while place < len(extra):
            kind, length = int.from_bytes(extra[place : place + 2], "little"), 0
            length = int.from_bytes(extra[place + 2 : place + 4], "little")
            end = place + 4 + length
            if end > len(extra) or (kind == _ZIP64_EXTRA and found is not None):
                raise self._unsafe("a record's extra fields are damaged", offset)
            if kind == _ZIP64_EXTRA:
                found = extra[place + 4 : end]
            place = end
        return found

    def _check_names(self) -> None:
        seen: set[bytes] = set()
        for entry in self._entries:
            # PyTorch's reader ignores case when it looks a record up
            folded = entry.raw.lower()
            if folded in seen:
                raise self._unsafe(f"two records are named {entry.name!r:.100}", entry.header)
            seen.add(folded)

    def _locate(self, entry: _Entry) -> Record:
        if entry.flags & _ENCRYPTION:
            raise self._unsafe(f"{entry.name!r:.100} is encrypted", entry.header)
        if entry.method != 0 or entry.packed != entry.nbytes:
            raise self._unsafe(f"{entry.name!r:.100} is compressed", entry.header)
        length = _LOCAL.size + len(entry.raw)
        if entry.header + length > self.start:
            raise self._unsafe(f"{entry.name!r:.100} lies outside its place", entry.header)
        header = self._file.read(entry.header, length, limit=_LOCAL.size + MAX_NAME_BYTES)
        fields = _LOCAL.unpack_from(header)
        mark, _, flags, method, _, _, crc32, packed, nbytes, name_length, extra_length = fields
        offset = entry.header + length + extra_length
        if mark != _LOCAL_MARK or name_length != len(entry.raw) or offset > self.start:
            raise self._unsafe(f"{entry.name!r:.100} has no local header", entry.header)
        if (flags, method, header[_LOCAL.size :]) != (entry.flags, entry.method, entry.raw):
            raise self._contradiction(entry)
        if _MAX32 in (packed, nbytes):
            packed, nbytes = self._local_sizes(entry, offset - extra_length, extra_length)
        stated = (crc32, packed, nbytes)
        # with a data descriptor the header may leave all three at zero
        later = entry.flags & _DESCRIPTOR and stated == (0, 0, 0)
        if not later and stated != (entry.crc32, entry.packed, entry.nbytes):
            raise self._contradiction(entry)
        if offset + entry.nbytes > self.start:
            raise self._unsafe(f"{entry.name!r:.100} reaches into the directory", entry.header)
        return Record(entry.name, entry.crc32, offset, entry.nbytes)

    def _local_sizes(self, entry: _Entry, place: int, length: int) -> tuple[int, int]:
        extra = self._zip64(self._file.read(place, length, limit=_MAX16), place)
        if extra is None or len(extra) < 16:
            raise self._contradiction(entry)
        nbytes, packed = struct.unpack_from("<2Q", extra)
        return packed, nbytes

    def _check_tail(self, entry: _Entry, end: int, following: int) -> None:
        """Check that a record is followed by its data descriptor, if any, and nothing else."""
        gap = following - end
        if gap < 0:
            raise self._unsafe(f"{entry.name!r:.100} overlaps the next record", following)
        described = bool(entry.flags & _DESCRIPTOR)
        if gap == 0 and not (described and entry.nbytes):
            return
        if not described or gap not in _DESCRIPTORS:
            raise self._unsafe(
                f"no record holds the {counted(gap, 'byte')} after {entry.name!r:.100}", end
            )
        data = self._file.read(end, gap, limit=gap)
        marked = gap in (12, 20) or data[:4] == _DESCRIPTOR_MARK
        stated = _DESCRIPTORS[gap].unpack(data)
        if not marked or stated != (entry.crc32, entry.packed, entry.nbytes):
            raise self._contradiction(entry)

    def _contradiction(self, entry: _Entry) -> CheckpointError:
        return self._unsafe(
            f"the local header or data descriptor of {entry.name!r:.100} contradicts the directory",
            entry.header,
        )

    def _unsafe(self, message: str, offset: int) -> CheckpointError:
        return malformed("WG117", message, file=self._file.name, offset=offset)


def _is_name(raw: bytes, flags: int) -> bool:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return False
    if len(raw) > MAX_NAME_BYTES or not name.isprintable() or ".." in name.split("/"):
        return False
    # without the flag a name beyond ASCII is code page 437 to some readers
    return bool(raw) and (raw.isascii() or bool(flags & _UTF8))
