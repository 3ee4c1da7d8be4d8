"""PyTorch zip checkpoints written by hand, so that each byte of them can be made wrong."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

PROTO = b"\x80\x02"
STOP = b"."


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(path: str) -> bytes:
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def numbers(*values: int) -> bytes:
    return tuple_of(*map(number, values))


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + tuple_of(*arguments) + b"R"


def storage(key: str = "0", count: int = 4, kind: str = "torch.FloatStorage") -> bytes:
    return tuple_of(text("storage"), name(kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(
    store: bytes = storage(),
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    *more: bytes,
) -> bytes:
    hooks = call("collections.OrderedDict")
    view = (store, number(offset), numbers(*shape), numbers(*strides), b"\x89", hooks)
    return call("torch._utils._rebuild_tensor_v2", *view, *more)


def table(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def pickled(value: bytes) -> bytes:
    return PROTO + value + STOP


@dataclass
class Entry:
    """One record; None keeps what is right, anything else is written as given."""

    name: str | bytes
    data: bytes
    crc: int | None = None
    method: int = 0
    flags: int = 0x0800
    local_name: bytes | None = None
    local_size: int | None = None
    local_crc: int | None = None
    local_flags: int | None = None
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    disk: int = 0
    extra: bytes = b""
    local_extra: bytes = b""
    after: bytes = b""
    comment: bytes = b""


@dataclass
class Zip:
    """An archive; the fields replace what its end record says."""

    entries: list[Entry] = field(default_factory=list)
    before: bytes = b""
    after: bytes = b""
    gap: bytes = b""
    comment: bytes = b""
    count: int | None = None
    disk: int = 0
    directory_size: int | None = None
    directory_offset: int | None = None
    end_64: bytes = b""

    def build(self) -> bytes:
        body, directory = self.before, b""
        for entry in self.entries:
            offset = len(body) if entry.offset is None else entry.offset
            body += _local(entry) + entry.data + entry.after
            directory += _central(entry, offset)
        start = len(body) if self.directory_offset is None else self.directory_offset
        size = len(directory) if self.directory_size is None else self.directory_size
        count = len(self.entries) if self.count is None else self.count
        end = struct.pack(
            "<4s4H2LH", b"PK\x05\x06", self.disk, 0, count, count, size, start, len(self.comment)
        )
        return body + directory + self.gap + self.end_64 + end + self.comment + self.after


def _raw(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _local(e: Entry) -> bytes:
    raw = _raw(e.name) if e.local_name is None else e.local_name
    crc = _or(e.local_crc, _or(e.crc, zlib.crc32(e.data)))
    size = _or(e.local_size, len(e.data))
    flags = _or(e.local_flags, e.flags)
    head = struct.pack(
        "<4s5H3L2H", b"PK\x03\x04", 0, flags, e.method, 0, 0, crc, size, size,
        len(raw), len(e.local_extra),
    )  # fmt: skip
    return head + raw + e.local_extra


def _central(e: Entry, offset: int) -> bytes:
    raw, crc = _raw(e.name), _or(e.crc, zlib.crc32(e.data))
    size = _or(e.size, len(e.data))
    head = struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", 0, 0, e.flags, e.method, 0, 0, crc, _or(e.packed, size),
        size, len(raw), len(e.extra), len(e.comment), e.disk, 0, 0, offset,
    )  # fmt: skip
    return head + raw + e.extra + e.comment


VALUES = struct.pack("<4f", 1, 2, 3, 4)


def entries(
    pickle: bytes | None = None, *more: Entry, data: bytes = VALUES, order: bytes = b"little"
) -> list[Entry]:
    """Return the records of a small sound checkpoint with the tensor ``w``, and ``more``."""
    return [
        Entry("a/data.pkl", pickled(table(w=tensor())) if pickle is None else pickle),
        Entry("a/byteorder", order),
        Entry("a/data/0", data),
        Entry("a/version", b"3\n"),
        *more,
    ]


def archive(pickle: bytes | None = None, *more: Entry, data: bytes = VALUES) -> bytes:
    """Return the bytes of a small checkpoint."""
    return Zip(entries(pickle, *more, data=data)).build()
