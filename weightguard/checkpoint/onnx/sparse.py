"""SparseTensorProto: its values, its indices, and the dense shape they are scattered into.

Source: onnx.proto (1.23). The dense shape is no tensor in the file but decides where values go,
so it is fingerprinted as one.
"""

from __future__ import annotations

from dataclasses import dataclass

from weightguard.checkpoint.names import shown
from weightguard.checkpoint.onnx import protobuf
from weightguard.checkpoint.onnx.attribute import add_part
from weightguard.checkpoint.onnx.payload import Payload, integers
from weightguard.checkpoint.onnx.protobuf import LENGTH, VARINT, Message, Span, Wire
from weightguard.checkpoint.onnx.tensor import TensorMessage, read_tensor
from weightguard.checkpoint.onnx.types import INT64_TYPE
from weightguard.errors import CheckpointError, malformed
from weightguard.tensor import MAX_DIMENSIONS

_VALUES, _INDICES, _DIMS_PACKED = (protobuf.tag(n, LENGTH) for n in (1, 2, 3))
_DIMS = protobuf.tag(3, VARINT)


@dataclass(frozen=True, slots=True)
class SparseMessage:
    """A sparse tensor: ``values`` [n], ``indices`` [n] or [n, rank] in I64, ``dims`` [rank]."""

    values: TensorMessage
    indices: TensorMessage
    dims: Payload


def read_sparse(wire: Wire, message: Message) -> SparseMessage:
    """Return the parts of the SparseTensorProto ``message``.

    Raises CheckpointError: WG107 where a part is missing or shapes and types contradict each
    other, else as ``read_tensor``.
    """
    parts: dict[int, list[Span]] = {_VALUES: [], _INDICES: []}
    dims: list[int] = []
    start = message[0][0]
    for key, place, value in wire.fields(message):
        if key in parts:
            add_part(wire, parts[key], (place, value))
        elif key == _DIMS:
            dims.append(value)
        elif key == _DIMS_PACKED:
            dims.extend(wire.varints((place, value), MAX_DIMENSIONS + 1))
        if len(dims) > MAX_DIMENSIONS:
            raise _error(wire, start, "", "too many dimensions")
    if not parts[_VALUES] or not parts[_INDICES]:
        raise _error(wire, start, "", "no values or no indices")
    values, indices = read_tensor(wire, parts[_VALUES]), read_tensor(wire, parts[_INDICES])
    _check(wire, values, indices, dims)
    return SparseMessage(values, indices, integers(wire, dims, (len(dims),), start))


def _check(wire: Wire, values: TensorMessage, indices: TensorMessage, dims: list[int]) -> None:
    count = values.dims[0] if len(values.dims) == 1 else -1
    fits = indices.dims in ([count], [count, len(dims)])
    if indices.data_type != INT64_TYPE or not fits:
        what = f"indices of shape {indices.dims} for values of shape {values.dims}"
        raise _error(wire, values.start, values.name, what)
    if any(protobuf.signed(size) < 0 for size in dims):
        raise _error(wire, values.start, values.name, "a negative dimension")


def _error(wire: Wire, start: int, name: str, what: str) -> CheckpointError:
    message = f"sparse tensor {shown(name)} has {what}"
    return malformed("WG107", message, file=wire.file.name, offset=start, tensor=name or None)
