"""A tensor's payload: from a TensorProto's fields to dtype, shape and a source of bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from weightguard.checkpoint.files import CheckpointFile, FileRange
from weightguard.checkpoint.names import shown
from weightguard.checkpoint.onnx import protobuf, types
from weightguard.checkpoint.onnx.external import ExternalFiles
from weightguard.checkpoint.onnx.protobuf import LENGTH, Wire
from weightguard.checkpoint.onnx.tensor import Repeated, TensorMessage
from weightguard.checkpoint.onnx.types import TYPES, OnnxType
from weightguard.checkpoint.onnx.varints import (
    MemoryRange,
    PackedVarints,
    Storage,
    VarintError,
    packed_varints,
)
from weightguard.errors import CheckpointError, malformed
from weightguard.tensor import DTYPES, ByteSource, DType

MAX_ELEMENTS = 1 << 60
"""No product of a tensor's dimensions may exceed it, zeros left out."""

_KEY, _VALUE = protobuf.tag(1, LENGTH), protobuf.tag(2, LENGTH)


@dataclass(frozen=True, slots=True)
class Payload:
    """A tensor without its name: where its canonical bytes lie.

    ``offset`` is that of the bytes where they are one run of ``file``; ``position`` orders
    tensors of a file by where they were found.
    """

    dtype: DType
    shape: tuple[int, ...]
    file: CheckpointFile
    position: int
    offset: int | None
    source: ByteSource

    @property
    def elements(self) -> int:
        """The number of elements, 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of canonical bytes."""
        return self.dtype.nbytes(self.elements)


def locate(wire: Wire, tensor: TensorMessage, name: str, external: ExternalFiles) -> Payload:
    """Return dtype, shape and bytes of ``tensor``; ``name`` is shown in errors.

    A sub-byte tensor whose elements do not fill its last byte is described as the U8 bytes it
    is stored in (``is_padded`` tells). Raises CheckpointError: WG108 for an unknown element type,
    WG107 where dimensions, stored size and data fields contradict each other, WG103 for typed
    values that are malformed or out of range, and as ``ExternalFiles.locate`` does.
    """
    kind = TYPES.get(tensor.data_type)
    if kind is None:
        what = f"the element type {tensor.data_type}, which ONNX 1.23 does not define"
        raise _contradiction(wire, tensor, name, what, code="WG108")
    elements = _elements(wire, tensor, name)
    nbytes = kind.nbytes(elements)
    dtype, shape = kind.dtype, tuple(tensor.dims)
    if elements % dtype.block_elements:
        dtype, shape = DTYPES["U8"], (nbytes,)
    _check_fields(wire, tensor, name, kind)
    if tensor.is_external:
        entries = _external_entries(wire, tensor)
        file, offset = external.locate(entries, nbytes, name, tensor.start)
        return Payload(dtype, shape, file, offset, offset, FileRange(file, offset))
    if tensor.raw is not None:
        start, end = tensor.raw
        if end - start != nbytes:
            what = f"{end - start} bytes of raw data where its shape needs {nbytes}"
            raise _contradiction(wire, tensor, name, what)
        return Payload(dtype, shape, wire.file, start, start, FileRange(wire.file, start))
    values = tensor.typed.get(kind.field, Repeated())
    payload = decode_values(wire, values, kind, elements, name, tensor.start)
    return replace(payload, dtype=dtype, shape=shape)


def is_padded(tensor: TensorMessage) -> bool:
    """Return whether the elements of ``tensor`` leave a part of its last byte empty."""
    kind = TYPES.get(tensor.data_type)
    return kind is not None and math.prod(tensor.dims) % kind.dtype.block_elements != 0


def decode_values(
    wire: Wire, values: Repeated, kind: OnnxType, elements: int | None, name: str, start: int
) -> Payload:
    """Return ``elements`` typed values as a 1-D tensor; however many there are where it is None.

    Raises CheckpointError: WG107 for another number of values, WG103 for malformed ones.
    """
    source: ByteSource
    if kind.storage is None:
        count, rest = divmod(values.nbytes, types.FLOAT_BYTES[kind.field])
        source, offset = values.source(wire.file), values.offset
        if rest:
            raise _count_error(wire, name, start, f"{values.nbytes} bytes", count + 1)
    else:
        source = packed = _varints(wire, values, kind.storage, name, start)
        count, offset = packed.count, None
    if elements is None:
        elements = count
    if count != kind.stored_values(elements):
        raise _count_error(wire, name, start, f"{count} values", kind.stored_values(elements))
    return Payload(kind.dtype, (elements,), wire.file, start, offset, source)


def integers(wire: Wire, values: Sequence[int], shape: tuple[int, ...], start: int) -> Payload:
    """Return unsigned 64-bit ``values`` as an I64 tensor of ``shape`` found at ``start``."""
    data = b"".join(value.to_bytes(8, "little") for value in values)
    return Payload(DTYPES["I64"], shape, wire.file, start, None, MemoryRange(data))


def _varints(
    wire: Wire, values: Repeated, storage: Storage, name: str, start: int
) -> PackedVarints:
    try:
        return packed_varints(values.source(wire.file), values.nbytes, storage)
    except VarintError as error:
        place = start if values.offset is None else values.offset + error.offset
        raise wire.error("WG103", place, f"in tensor {shown(name)} {error}") from error


def _elements(wire: Wire, tensor: TensorMessage, name: str) -> int:
    lowest = min(tensor.dims, default=0)
    if lowest < 0:
        raise _contradiction(wire, tensor, name, f"the dimension {lowest}")
    if math.prod(d for d in tensor.dims if d) > MAX_ELEMENTS:
        raise _contradiction(wire, tensor, name, "a shape of more elements than memory holds")
    return math.prod(tensor.dims)


def _check_fields(wire: Wire, tensor: TensorMessage, name: str, kind: OnnxType) -> None:
    typed = [number for number, values in tensor.typed.items() if values.nbytes]
    places = len(typed) + tensor.has_strings + (tensor.raw is not None) + tensor.is_external
    if places > 1:
        raise _contradiction(wire, tensor, name, "its data in more than one place")
    if tensor.has_strings or any(number != kind.field for number in typed):
        what = f"data in a field that is not for its element type {kind.dtype.name}"
        raise _contradiction(wire, tensor, name, what)


def _external_entries(wire: Wire, tensor: TensorMessage) -> Mapping[str, str]:
    entries: dict[str, str] = {}
    for span in tensor.external:
        pair = {_KEY: "", _VALUE: ""}
        for key, start, end in wire.fields((span,)):
            if key in pair:
                pair[key] = wire.text((start, end), "an external data entry")
        if pair[_KEY] in entries:
            raise wire.error("WG103", span[0], f"a second external {shown(pair[_KEY])} entry")
        entries[pair[_KEY]] = pair[_VALUE]
    return entries


def _count_error(wire: Wire, name: str, start: int, found: str, expected: int) -> CheckpointError:
    message = f"tensor {shown(name)} has {found} of typed data where its shape needs {expected}"
    return malformed("WG107", message, file=wire.file.name, offset=start, tensor=name)


def _contradiction(
    wire: Wire, tensor: TensorMessage, name: str, what: str, *, code: str = "WG107"
) -> CheckpointError:
    message = f"tensor {shown(name)} has {what}"
    return malformed(code, message, file=wire.file.name, offset=tensor.start, tensor=name)
