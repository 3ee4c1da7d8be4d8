"""One weight, one mapping: stored weights laid out so that each starts a page of its own.

onnxruntime maps each external initializer, and each packed form of one, by itself. Where no two
of them share a page, every mapping is the memory of one weight, and a damaged page is its alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import IO

import msgspec
import onnx
from blake3 import blake3
from onnx import TensorProto

from weightguard.errors import WeightguardError
from weightguard_integrations.onnxruntime.graphs import (
    canonical_dtype,
    initializers,
    raw_bytes,
    stored_bytes,
)

DATA_NAME = "weights.data"

APART = 1 << 16
"""Weights start at multiples of this, and as far at least from the end of the one before.

Pages of every usual kernel divide it, and no kernel maps more than as much around a page that
is read: that one weight is read shows as that one alone.
"""

ROW_BYTES = (1024, 512, 256, 128, 64)
"""Rows that packed bytes are read as, the first that divides them."""

_PACKED = "prepacked"
_COPY_BYTES = 1 << 20

SMALL_MOVABLE = frozenset(
    (
        TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
        TensorProto.INT8, TensorProto.UINT8,
    )
)  # fmt: skip
"""Types of initializers in the graph itself that may move into the file.

The runtime reads shapes, axes and counts while it builds a graph, and wants those in place.
"""


class Extent(msgspec.Struct, frozen=True):
    """One weight in the file: bytes ``offset`` on, ``digest`` their BLAKE3 in hex.

    ``source`` is the initializer it belongs to; ``packed`` bytes are what kernels made of that.
    ``shares`` are further names of the same bytes.
    """

    name: str
    source: str
    packed: bool
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    digest: str
    shares: tuple[str, ...] = ()


class AlignedFile:
    """Writes weights to a file, each at its own page, once each."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._end = 0

    def put(self, pieces: Iterable[bytes]) -> tuple[int, int, str]:
        """Write the bytes at the next free page; return offset, length and digest."""
        offset = apart(self._end)
        self._file.seek(offset)
        hasher, nbytes = blake3(), 0
        for piece in pieces:
            hasher.update(piece)
            self._file.write(piece)
            nbytes += len(piece)
        self._end = offset + nbytes
        return offset, nbytes, hasher.hexdigest()

    def finish(self) -> None:
        """Make the last page whole."""
        self._file.truncate(apart(self._end))
        self._file.flush()


def apart(end: int) -> int:
    """Return where the weight after one that ends at ``end`` starts."""
    return (-(-end // APART) + 1) * APART if end else 0


def packed_shape(nbytes: int) -> tuple[int, ...]:
    """Return the shape that packed bytes are watched in."""
    row = next((row for row in ROW_BYTES if nbytes % row == 0 and nbytes > row), None)
    return (nbytes,) if row is None else (nbytes // row, row)


class Relaid(msgspec.Struct, frozen=True):
    """The extents of a model's weights, and what stays in the graph: names and bytes.

    ``nested``: some of the weights belong to graphs inside others.
    """

    extents: tuple[Extent, ...]
    inline: tuple[tuple[str, int], ...]
    nested: bool


def relay(
    model: onnx.ModelProto, source: IO[bytes], target: IO[bytes], *, move_small: bool
) -> Relaid:
    """Lay out the external weights of ``model``, which lie in ``source``, in ``target`` anew.

    Changes ``model`` to match. ``move_small`` moves small weights out of the graph too. Raises
    WeightguardError where ``source`` ends early.
    """
    aligned = AlignedFile(target)
    extents: dict[tuple[int, int], Extent] = {}
    inline: list[tuple[str, int]] = []

    def move(place: tuple[int, int], describe: Callable[[int, int, str], Extent]) -> int:
        known = extents.get(place)
        if known is None:
            extents[place] = describe(*aligned.put(_read(source, *place)))
        else:
            name = describe(known.offset, known.nbytes, known.digest).name
            extents[place] = msgspec.structs.replace(known, shares=(*known.shares, name))
        return extents[place].offset

    for name, tensor in initializers(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            _move_external(name, tensor, move)
        elif move_small and tensor.data_type in SMALL_MOVABLE and stored_bytes(tensor):
            extents[-len(extents) - 1, 0] = _move_inline(name, tensor, aligned)
        else:
            inline.append((name, stored_bytes(tensor)))
    aligned.finish()
    own = {tensor.name for tensor in model.graph.initializer}
    nested = any(extent.source not in own for extent in extents.values())
    return Relaid(tuple(extents.values()), tuple(inline), nested)


def _move_external(
    name: str,
    tensor: TensorProto,
    move: Callable[[tuple[int, int], Callable[[int, int, str], Extent]], int],
) -> None:
    dtype, shape = canonical_dtype(tensor)
    entries = {entry.key: entry for entry in tensor.external_data}
    place = int(entries["offset"].value), int(entries["length"].value)

    def plain(offset: int, nbytes: int, digest: str) -> Extent:
        return Extent(name, name, False, dtype, shape, offset, nbytes, digest)

    offset = move(place, plain)
    entries["offset"].value, entries["location"].value = str(offset), DATA_NAME
    for key, entry in entries.items():
        if key.startswith(_PACKED):
            entry.value = _move_packed(name, entry.value, move)


def _move_packed(
    name: str,
    value: str,
    move: Callable[[tuple[int, int], Callable[[int, int, str], Extent]], int],
) -> str:
    """Move the blobs of ``KERNEL+HASH|OFFSET;LENGTH;CHECKSUM|...``; return it with new offsets."""
    kernel, *blobs = value.split("|")
    moved = [kernel]
    for position, blob in enumerate(blobs):
        offset, length, *rest = blob.split(";")
        part = f".{position}" if position else ""
        packed_name = f"{name}@{kernel.split('+')[0]}{part}"

        def packed(at: int, nbytes: int, digest: str, called: str = packed_name) -> Extent:
            return Extent(called, name, True, "U8", packed_shape(nbytes), at, nbytes, digest)

        place = int(offset), int(length)
        moved.append(";".join([str(move(place, packed)), length, *rest]) if place[1] else blob)
    return "|".join(moved)


def _move_inline(name: str, tensor: TensorProto, aligned: AlignedFile) -> Extent:
    dtype, shape = canonical_dtype(tensor)
    offset, nbytes, digest = aligned.put([raw_bytes(tensor)])
    point_outside(tensor, DATA_NAME, offset, nbytes)
    return Extent(name, name, False, dtype, shape, offset, nbytes, digest)


def point_outside(tensor: TensorProto, location: str, offset: int, nbytes: int) -> None:
    """Have ``tensor`` read its data from an external file."""
    for data in ("raw_data", "float_data", "double_data", "int32_data", "int64_data"):
        tensor.ClearField(data)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", nbytes)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def _read(source: IO[bytes], offset: int, nbytes: int) -> Iterable[bytes]:
    source.seek(offset)
    while nbytes:
        piece = source.read(min(_COPY_BYTES, nbytes))
        if not piece:
            raise WeightguardError(
                "the runtime's optimised model ends early: the disk may be full. Give cache= a "
                "folder with room for three times the model"
            )
        nbytes -= len(piece)
        yield piece
