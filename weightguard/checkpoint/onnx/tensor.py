"""TensorProto: its fields, with the payloads left where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field

from weightguard.checkpoint.files import CheckpointFile, FileRange
from weightguard.checkpoint.onnx import protobuf, types
from weightguard.checkpoint.onnx.protobuf import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    Message,
    Span,
    Wire,
)
from weightguard.checkpoint.onnx.varints import MemoryRange
from weightguard.tensor import MAX_DIMENSIONS, ByteSource

MAX_EXTERNAL_ENTRIES = 1024
"""Key-value pairs of one tensor's external data; onnxruntime adds one per prepacked blob."""

_EXTERNAL = 1
_DIMS = protobuf.tag(1, VARINT)
_DIMS_PACKED = protobuf.tag(1, LENGTH)
_DATA_TYPE = protobuf.tag(2, VARINT)
_SEGMENT = protobuf.tag(3, LENGTH)
_STRINGS = protobuf.tag(types.STRING_DATA, LENGTH)
_NAME = protobuf.tag(8, LENGTH)
_RAW = protobuf.tag(types.RAW_DATA, LENGTH)
_EXTERNAL_DATA = protobuf.tag(13, LENGTH)
_LOCATION = protobuf.tag(14, VARINT)

_TYPED_WIRE = {
    types.FLOAT_DATA: FIXED32,
    types.DOUBLE_DATA: FIXED64,
    types.INT32_DATA: VARINT,
    types.INT64_DATA: VARINT,
    types.UINT64_DATA: VARINT,
}
_TYPED = {protobuf.tag(number, kind): number for number, kind in _TYPED_WIRE.items()}
_TYPED_PACKED = {protobuf.tag(number, LENGTH): number for number in _TYPED_WIRE}


@dataclass(slots=True)
class Repeated:
    """The payload of a repeated number field, as if it had been written in one packed piece.

    One packed piece stays in the file; anything else is joined in memory.
    """

    span: Span | None = None
    joined: bytearray | None = None

    def add(self, wire: Wire, span: Span) -> None:
        """Append a packed piece, or one number of fixed width."""
        if span[0] == span[1]:
            return
        if self.span is None and self.joined is None:
            self.span = span
        else:
            self._in_memory(wire).extend(wire.copy(*span))

    def add_varint(self, wire: Wire, value: int) -> None:
        """Append one number that was not packed."""
        self._in_memory(wire).extend(protobuf.encoded(value))

    def _in_memory(self, wire: Wire) -> bytearray:
        if self.joined is None:
            self.joined = bytearray(wire.copy(*self.span) if self.span else b"")
            self.span = None
        return self.joined

    @property
    def nbytes(self) -> int:
        """The bytes of the payload."""
        if self.joined is not None:
            return len(self.joined)
        return self.span[1] - self.span[0] if self.span else 0

    @property
    def offset(self) -> int | None:
        """The file offset of the payload, None where it was joined in memory or is empty."""
        return self.span[0] if self.span else None

    def source(self, file: CheckpointFile) -> ByteSource:
        """Return the payload's bytes."""
        return (
            FileRange(file, self.span[0]) if self.span else MemoryRange(bytes(self.joined or b""))
        )


@dataclass(slots=True)
class TensorMessage:
    """The fields of one TensorProto, payloads unread. ``start`` is its offset in the file."""

    start: int
    name: str = ""
    dims: list[int] = field(default_factory=list)
    data_type: int = types.UNDEFINED
    raw: Span | None = None
    typed: dict[int, Repeated] = field(default_factory=dict)
    external: list[Span] = field(default_factory=list)
    is_external: bool = False
    has_strings: bool = False
    has_segment: bool = False


def read_tensor(wire: Wire, message: Message) -> TensorMessage:
    """Return the fields of the TensorProto ``message``.

    Raises CheckpointError: WG102, WG103 and WG116 as ``Wire.fields`` does, WG103 for an unknown
    data location, WG107 for more than ``MAX_DIMENSIONS`` dimensions.
    """
    tensor = TensorMessage(message[0][0])
    for key, start, value in wire.fields(message):
        if key == _DIMS:
            tensor.dims.append(protobuf.signed(value))
        elif key == _DIMS_PACKED:
            limit = MAX_DIMENSIONS + 1
            tensor.dims.extend(map(protobuf.signed, wire.varints((start, value), limit)))
        elif key == _DATA_TYPE:
            tensor.data_type = value
        elif key == _RAW:
            tensor.raw = (start, value)
        elif key in _TYPED or key in _TYPED_PACKED:
            _add_typed(wire, tensor, key, start, value)
        else:
            _read_rest(wire, tensor, key, start, value)
        if len(tensor.dims) > MAX_DIMENSIONS:
            raise wire.error("WG107", start, f"a tensor of more than {MAX_DIMENSIONS} dimensions")
    return tensor


def _add_typed(wire: Wire, tensor: TensorMessage, key: int, start: int, value: int) -> None:
    number = key >> 3
    repeated = tensor.typed.setdefault(number, Repeated())
    if _TYPED_WIRE[number] == VARINT and key in _TYPED:
        repeated.add_varint(wire, value)
    else:
        repeated.add(wire, (start, value))


def _read_rest(wire: Wire, tensor: TensorMessage, key: int, start: int, value: int) -> None:
    if key == _NAME:
        tensor.name = wire.text((start, value), "a tensor name")
    elif key == _EXTERNAL_DATA:
        tensor.external.append((start, value))
        if len(tensor.external) > MAX_EXTERNAL_ENTRIES:
            raise wire.error("WG116", start, f"more than {MAX_EXTERNAL_ENTRIES} entries")
    elif key == _LOCATION:
        if value > _EXTERNAL:
            raise wire.error("WG103", start, f"the unknown data location {value}")
        tensor.is_external = value == _EXTERNAL
    elif key == _STRINGS:
        tensor.has_strings = True
    elif key == _SEGMENT:
        tensor.has_segment = True
