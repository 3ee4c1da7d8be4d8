"""AttributeProto: the parts of a node's attribute that can hold weights.

Source: onnx.proto (1.23). Lists of floats are weights in some operators (trees, linear models) and
are kept for every node; single numbers and lists of integers only where they are constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from weightguard.checkpoint.files import FileRange
from weightguard.checkpoint.onnx import protobuf
from weightguard.checkpoint.onnx.payload import Payload, decode_values, integers
from weightguard.checkpoint.onnx.protobuf import (
    FIXED32,
    LENGTH,
    MAX_MERGED_PARTS,
    VARINT,
    Span,
    Wire,
)
from weightguard.checkpoint.onnx.tensor import Repeated
from weightguard.checkpoint.onnx.types import FLOAT_TYPE, INT64_TYPE, TYPES
from weightguard.tensor import DTYPES

_NAME = protobuf.tag(1, LENGTH)
_F, _I, _S = protobuf.tag(2, FIXED32), protobuf.tag(3, VARINT), protobuf.tag(4, LENGTH)
_FLOAT_LISTS = frozenset((protobuf.tag(7, FIXED32), protobuf.tag(7, LENGTH)))
_INTS, _INTS_PACKED = protobuf.tag(8, VARINT), protobuf.tag(8, LENGTH)
_STRINGS = protobuf.tag(9, LENGTH)
TENSOR, GRAPH, SPARSE = (protobuf.tag(n, LENGTH) for n in (5, 6, 22))
TENSORS, GRAPHS, SPARSES = (protobuf.tag(n, LENGTH) for n in (10, 11, 23))

_NESTED = frozenset((TENSOR, GRAPH, SPARSE, TENSORS, GRAPHS, SPARSES))
_IN_ALL = _NESTED | _FLOAT_LISTS
_IN_CONSTANTS = _IN_ALL | {_F, _I, _S, _INTS, _INTS_PACKED, _STRINGS}


@dataclass(slots=True)
class Attribute:
    """The fields of one AttributeProto; ``nested`` holds its messages by tag.

    ``single``, ``integer``, ``ints`` and ``has_text`` are read for constants only. ``name`` is
    where the name stands, an empty span without one.
    """

    start: int
    name: Span
    nested: dict[int, list[Span]] = field(default_factory=dict)
    floats: Repeated = field(default_factory=Repeated)
    ints: Repeated = field(default_factory=Repeated)
    single: Span | None = None
    integer: int | None = None
    has_text: bool = False


def read_attribute(wire: Wire, span: Span, *, constant: bool) -> Attribute | None:
    """Return the fields of the AttributeProto at ``span``, None where it holds no weights.

    Raises CheckpointError as ``Wire.fields`` does.
    """
    attribute = None
    name = (span[0], span[0])
    wanted = _IN_CONSTANTS if constant else _IN_ALL
    for key, start, value in wire.fields((span,)):
        if key == _NAME:
            name = (start, value)
        elif key in wanted:
            attribute = attribute or Attribute(span[0], name)
            _read_field(wire, attribute, key, start, value)
    if attribute is not None:
        attribute.name = name
    return attribute


def add_part(wire: Wire, spans: list[Span], span: Span) -> None:
    """Append ``span``; raises CheckpointError with WG116 above ``MAX_MERGED_PARTS``."""
    if len(spans) == MAX_MERGED_PARTS:
        raise wire.error("WG116", span[0], f"more than {MAX_MERGED_PARTS} repetitions of a field")
    spans.append(span)


def numbers(wire: Wire, attribute: Attribute, name: str) -> Iterator[Payload]:
    """Yield the numbers of ``attribute`` as F32 and I64 tensors, ``name`` shown in errors.

    Raises CheckpointError with WG103 or WG107 for malformed packed numbers.
    """
    for values, number in ((attribute.floats, FLOAT_TYPE), (attribute.ints, INT64_TYPE)):
        if values.nbytes:
            yield decode_values(wire, values, TYPES[number], None, name, attribute.start)
    if attribute.single is not None:
        offset = attribute.single[0]
        source = FileRange(wire.file, offset)
        yield Payload(DTYPES["F32"], (), wire.file, offset, offset, source)
    if attribute.integer is not None:
        yield integers(wire, [attribute.integer], (), attribute.start)


def _read_field(wire: Wire, attribute: Attribute, key: int, start: int, value: int) -> None:
    if key in _NESTED:
        add_part(wire, attribute.nested.setdefault(key, []), (start, value))
    elif key in _FLOAT_LISTS:
        attribute.floats.add(wire, (start, value))
    elif key == _INTS:
        attribute.ints.add_varint(wire, value)
    elif key == _INTS_PACKED:
        attribute.ints.add(wire, (start, value))
    elif key == _F:
        attribute.single = (start, value)
    elif key == _I:
        attribute.integer = value
    else:
        attribute.has_text = True
