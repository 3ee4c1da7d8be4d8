"""Packed varints as a tensor's bytes: indexed and checked once, decoded again where read.

Integers that a protobuf stores as a packed repeated field take one to ten bytes each, so element
i has no fixed place. An index of every ``CHUNK_VALUES``-th value's place gives random access with
memory of a few bytes per thousand elements instead of a decoded copy.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightguard.checkpoint.onnx.protobuf import MAX_VARINT_BYTES
from weightguard.tensor import ByteSource

CHUNK_VALUES = 65_536
"""Values decoded at a time; a multiple of the four that share bytes in 6-bit formats."""

_CHUNK_READ = CHUNK_VALUES * MAX_VARINT_BYTES
_CONTINUES = 0x80
_FEW = 8


class VarintError(ValueError):
    """A packed field that is not a sequence of varints in range; ``offset`` is the byte in it."""

    def __init__(self, what: str, offset: int):
        super().__init__(what)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """The ByteSource of bytes that lie in memory."""

    data: bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        buffer[:] = self.data[offset : offset + len(buffer)]


@dataclass(frozen=True, slots=True)
class Storage:
    """How decoded values become canonical bytes.

    Values lie in ``low`` to ``high``; each is stored in ``width`` bytes, or, where ``six_bits``
    is set, four of them in three bytes, low bits first.
    """

    low: int
    high: int
    width: int
    six_bits: bool = False

    @property
    def chunk_bytes(self) -> int:
        """The canonical bytes of a full chunk."""
        return CHUNK_VALUES * 3 // 4 if self.six_bits else CHUNK_VALUES * self.width


@dataclass(frozen=True, slots=True)
class PackedVarints:
    """The ByteSource of ``count`` values in ``nbytes`` packed bytes of ``payload``."""

    payload: ByteSource
    nbytes: int
    storage: Storage
    count: int
    places: array[int]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        done = 0
        size = self.storage.chunk_bytes
        while done < len(buffer):
            chunk, skip = divmod(offset + done, size)
            part = self._chunk(chunk)[skip : skip + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def _chunk(self, number: int) -> bytes:
        start = self.places[number]
        last = number + 1 == len(self.places)
        end = self.nbytes if last else self.places[number + 1]
        data = _read(self.payload, start, end - start)
        return _canonical(_decode(data, _ends(data), start), self.storage)


def packed_varints(payload: ByteSource, nbytes: int, storage: Storage) -> PackedVarints:
    """Index the packed field of ``nbytes`` bytes in ``payload``, checking every value once.

    Raises VarintError for a varint that does not end or exceeds 64 bits, and for a value outside
    ``storage.low`` to ``storage.high``.
    """
    places = array("Q")
    count = position = 0
    while position < nbytes:
        data = _read(payload, position, min(_CHUNK_READ, nbytes - position))
        ends = _ends(data)[:CHUNK_VALUES]
        if not ends.size or (len(ends) < CHUNK_VALUES and ends[-1] != len(data)):
            last = int(ends[-1]) if ends.size else 0
            raise VarintError("a varint that does not end", position + last)
        _check_range(_decode(data, ends, position), storage, ends, position)
        places.append(position)
        position += int(ends[-1])
        count += len(ends)
    return PackedVarints(payload, nbytes, storage, count, places)


def _read(payload: ByteSource, start: int, length: int) -> npt.NDArray[np.uint8]:
    data = bytearray(length)
    payload.read_into(start, memoryview(data))
    return np.frombuffer(data, np.uint8)


def _ends(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    return np.flatnonzero(data < _CONTINUES).astype(np.int64) + 1


def _decode(
    data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64], position: int
) -> npt.NDArray[np.uint64]:
    if len(ends) <= _FEW:
        return _decode_few(data.tobytes(), ends.tolist(), position)
    starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
    lengths = ends - starts
    longest = int(lengths.max(initial=0))
    if longest > MAX_VARINT_BYTES:
        first = int(starts[np.argmax(lengths > MAX_VARINT_BYTES)])
        raise VarintError("a varint of more than ten bytes", position + first)
    if longest <= 1:
        return data[: len(ends)].astype(np.uint64)
    values = np.zeros(len(ends), np.uint64)
    for step in range(longest):
        chosen = np.flatnonzero(lengths > step)
        septets = (data[starts[chosen] + step] & 0x7F).astype(np.uint64)
        if step == MAX_VARINT_BYTES - 1 and septets.max(initial=0) > 1:
            first = int(starts[chosen[np.argmax(septets > 1)]])
            raise VarintError("a varint of more than 64 bits", position + first)
        values[chosen] |= septets << np.uint64(7 * step)
    return values


def _decode_few(data: bytes, ends: list[int], position: int) -> npt.NDArray[np.uint64]:
    # graphs hold thousands of one- and two-element constants; array calls would dominate there
    values = []
    start = 0
    for end in ends:
        if end - start > MAX_VARINT_BYTES:
            raise VarintError("a varint of more than ten bytes", position + start)
        value = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(data[start:end]))
        if value >> 64:
            raise VarintError("a varint of more than 64 bits", position + start)
        values.append(value)
        start = end
    return np.array(values, np.uint64)


def _check_range(
    values: npt.NDArray[np.uint64], storage: Storage, ends: npt.NDArray[np.int64], position: int
) -> None:
    if storage.low < 0:
        view = values.view(np.int64)
        outside = (view < storage.low) | (view > storage.high)
    else:
        outside = values > np.uint64(storage.high)
    if outside.any():
        index = int(np.argmax(outside))
        start = int(ends[index - 1]) if index else 0
        what = f"the value {int(values.view(np.int64)[index])}, outside {storage.low} to "
        raise VarintError(f"{what}{storage.high}", position + start)


def _canonical(values: npt.NDArray[np.uint64], storage: Storage) -> bytes:
    if not storage.six_bits:
        return values.astype(f"<u{storage.width}").tobytes()
    codes = np.zeros(-(-len(values) // 4) * 4, np.uint32)
    codes[: len(values)] = values
    groups = codes.reshape(-1, 4) << np.array([0, 6, 12, 18], np.uint32)
    triples: npt.NDArray[np.uint32] = np.bitwise_or.reduce(groups, axis=1).astype("<u4")
    return triples.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
