"""GGUF files for tests, written by hand: sound by default, damaged on request."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

F32, F16, Q4_0, Q8_0, Q6_K = 0, 1, 2, 8, 14
U8, U32, U64, BOOL, STRING, ARRAY = 0, 4, 10, 7, 8, 9


@dataclass(frozen=True)
class Info:
    """One entry of the tensor list; ``ne`` is innermost first, ``offset`` within the data."""

    name: bytes = b"w"
    ne: tuple[int, ...] = (4, 2)
    kind: int = F32
    offset: int = 0
    dimensions: int | None = None

    def encoded(self) -> bytes:
        count = len(self.ne) if self.dimensions is None else self.dimensions
        sizes = struct.pack(f"<{len(self.ne)}Q", *self.ne)
        return (
            text(self.name)
            + struct.pack("<I", count)
            + sizes
            + struct.pack("<IQ", self.kind, self.offset)
        )


def text(data: bytes, length: int | None = None) -> bytes:
    """Return a string, whose length may be a lie."""
    return struct.pack("<Q", len(data) if length is None else length) + data


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    """Return one key-value pair."""
    return text(key) + struct.pack("<I", kind) + value


def u32(key: bytes, value: int) -> bytes:
    return entry(key, U32, struct.pack("<I", value))


def string(key: bytes, value: bytes) -> bytes:
    return entry(key, STRING, text(value))


def array(kind: int, count: int, elements: bytes) -> bytes:
    """Return an array's value."""
    return struct.pack("<IQ", kind, count) + elements


def gguf_bytes(
    infos: Sequence[Info] = (Info(),),
    data: bytes = bytes(32),
    *,
    entries: Sequence[bytes] = (),
    version: int = 3,
    magic: bytes = b"GGUF",
    alignment: int = 32,
    tensors: int | None = None,
    pairs: int | None = None,
) -> bytes:
    """Return a file; ``tensors`` and ``pairs`` override the counts in its header."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if tensors is None else tensors,
        len(entries) if pairs is None else pairs,
    )
    head += b"".join(entries) + b"".join(info.encoded() for info in infos)
    return head + bytes(-len(head) % alignment) + data
