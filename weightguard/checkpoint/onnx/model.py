"""ONNX models: every tensor of the graphs, located in the file without reading its bytes.

Source: onnx.proto (1.23) and the protobuf encoding guide. Why the wire format is read here and
not by the onnx package: docs/adr/0002-onnx-wire-reader.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from weightguard.catalogue import Severity
from weightguard.checkpoint.container import ParsedFile
from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.checkpoint.names import shown
from weightguard.checkpoint.onnx import protobuf
from weightguard.checkpoint.onnx.attribute import add_part
from weightguard.checkpoint.onnx.external import Extent, ExternalFiles, overlaps
from weightguard.checkpoint.onnx.graph import GraphWalk, NamedPayload, Uncovered
from weightguard.checkpoint.onnx.protobuf import LENGTH, VARINT, Span, Wire
from weightguard.errors import CheckpointError, malformed
from weightguard.finding import Finding, finding
from weightguard.tensor import TensorView
from weightguard.units import counted

MAX_METADATA_CHARS = 200
"""A producer's name or version is cut to this."""

MAX_OPSETS = 256
"""Operator sets that one model imports."""

MAX_IR_VERSION = 1 << 16
"""Versions count up by one a year; a larger number says that the file is something else."""

_MAX_PROBED_FIELDS = 64
_UNBOUNDED = 1 << 62
_OPSET_REQUIRED_SINCE = 3

_IR_VERSION, _MODEL_VERSION = protobuf.tag(1, VARINT), protobuf.tag(5, VARINT)
_PRODUCER, _PRODUCER_VERSION, _DOMAIN, _GRAPH, _OPSET, _TRAINING, _FUNCTION = (
    protobuf.tag(n, LENGTH) for n in (2, 3, 4, 7, 8, 20, 25)
)
_MODEL_TAGS = frozenset(
    (
        _IR_VERSION,
        _MODEL_VERSION,
        *(protobuf.tag(n, LENGTH) for n in (2, 3, 4, 6, 7, 8, 14, 20, 25, 26)),
    )
)
_GRAPH_TAGS = frozenset(protobuf.tag(n, LENGTH) for n in (1, 2, 5, 10, 11, 12, 13, 14, 15, 16))
_TEXTS = {_PRODUCER: "producer_name", _PRODUCER_VERSION: "producer_version", _DOMAIN: "domain"}
_OPSET_DOMAIN, _OPSET_VERSION = protobuf.tag(1, LENGTH), protobuf.tag(2, VARINT)

_BY_FILE = "Check these by the file digest, which covers every byte of the file."
_REASONS = {
    "string": (Severity.INFO, "of text: not fingerprinted", _BY_FILE),
    "undefined": (Severity.WARNING, "without an element type: not read", _BY_FILE),
    "segment": (Severity.ERROR, "cut in segments, which no runtime reads: not read", _BY_FILE),
    "padded": (
        Severity.INFO,
        "of a number of elements that does not fill bytes: fingerprinted as bytes and shape",
        "Nothing to do: every bit is covered; changes are located by byte.",
    ),
}


@dataclass(slots=True)
class _Model:
    ir_version: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    opsets: list[str] = field(default_factory=list)
    graph: list[Span] = field(default_factory=list)
    training: list[Span] = field(default_factory=list)
    functions: list[Span] = field(default_factory=list)


def is_onnx(file: CheckpointFile) -> bool:
    """Return whether ``file`` starts as a ModelProto does, truncated ones included.

    Protobufs have no magic. At most ``_MAX_PROBED_FIELDS`` top-level fields are looked at: all
    must be fields of ModelProto, among them a plausible IR version and a graph whose own first
    field is one of GraphProto's.
    """
    wire = Wire(file)
    version, graph = False, False
    try:
        for count, (key, start, value) in enumerate(wire.fields(((0, _UNBOUNDED),))):
            if key not in _MODEL_TAGS or count == _MAX_PROBED_FIELDS:
                return False
            if key == _IR_VERSION:
                version = 0 < value < MAX_IR_VERSION
            elif key == _GRAPH:
                graph = graph or next(iter(wire.fields(((start, value),))))[0] in _GRAPH_TAGS
            if version and graph:
                return True
    except (CheckpointError, StopIteration):
        return False
    return False


def parse_onnx(file: CheckpointFile, folder: Folder) -> ParsedFile:
    """Return the tensors of the ONNX model ``file``, whose external data lies in ``folder``.

    Tensors come in reading order: file by file, by offset. Raises CheckpointError: WG101 where
    the file is no ModelProto; WG102 and WG103 where it is cut or malformed; WG104 for duplicate
    initializers; WG106, WG107 and WG108 for a tensor that contradicts itself; WG110 and WG111 for
    external data that is a link or no regular file; WG115 for its file names; WG116 above a limit.
    """
    if not is_onnx(file):
        raise malformed("WG101", f"{file.name} is no ONNX model", file=file.name, offset=0)
    wire = Wire(file)
    model = _read_model(wire)
    walk = GraphWalk(wire, ExternalFiles(file, folder))
    walk.graph(model.graph, "", 1)
    for function in model.functions:
        walk.function(function)
    for position, training in enumerate(model.training):
        walk.training(training, position)
    tensors, found = _views(walk.tensors, file)
    found.extend(_uncovered(file, reason, seen) for reason, seen in walk.uncovered.items())
    unread = sum(seen.count for reason, seen in walk.uncovered.items() if reason != "padded")
    return ParsedFile(tensors, _metadata(model), tuple(found), unread=unread)


def _read_model(wire: Wire) -> _Model:
    model = _Model()
    parts = {_GRAPH: model.graph, _TRAINING: model.training, _FUNCTION: model.functions}
    for key, start, value in wire.fields(((0, wire.file.size),)):
        if key in parts:
            add_part(wire, parts[key], (start, value))
        elif key == _IR_VERSION:
            model.ir_version = value
        elif key in _TEXTS:
            model.texts[_TEXTS[key]] = wire.text((start, value), "a producer name")
        elif key == _OPSET:
            model.opsets.append(_opset(wire, (start, value)))
            if len(model.opsets) > MAX_OPSETS:
                raise wire.error("WG116", start, f"more than {MAX_OPSETS} operator sets")
    if model.ir_version >= _OPSET_REQUIRED_SINCE and not model.opsets:
        raise wire.error("WG103", wire.file.size, "no operator set, which every model imports,")
    return model


def _opset(wire: Wire, span: Span) -> str:
    domain, version = "", 0
    for key, start, value in wire.fields((span,)):
        if key == _OPSET_DOMAIN:
            domain = wire.text((start, value), "an operator set's domain")
        elif key == _OPSET_VERSION:
            version = protobuf.signed(value)
    return f"{domain[:MAX_METADATA_CHARS] or 'ai.onnx'}={version}"


def _metadata(model: _Model) -> dict[str, str]:
    texts = {key: text[:MAX_METADATA_CHARS] for key, text in model.texts.items() if text}
    opsets = ", ".join(sorted(model.opsets))
    return {"ir_version": str(model.ir_version), **texts, "opset_import": opsets}


def _views(
    found: list[NamedPayload], model: CheckpointFile
) -> tuple[tuple[TensorView, ...], list[Finding]]:
    order: dict[str, int] = {str(model.path): 0}
    same: dict[Hashable, list[NamedPayload]] = {}
    for entry in found:
        payload = entry.payload
        order.setdefault(str(payload.file.path), len(order))
        key: Hashable = entry.name
        if payload.file is not model and payload.elements:
            place = (str(payload.file.path), payload.position)
            key = (place, payload.dtype.name, payload.shape)
        same.setdefault(key, []).append(entry)
    groups = sorted(
        same.values(), key=lambda g: (order[str(g[0].payload.file.path)], g[0].payload.position)
    )
    external = [group[0] for group in groups if group[0].payload.file is not model]
    return tuple(_view(group) for group in groups), overlaps(map(_extent, external))


def _view(group: Sequence[NamedPayload]) -> TensorView:
    payload = group[0].payload
    return TensorView(
        group[0].name,
        payload.dtype,
        payload.shape,
        payload.file.name,
        payload.offset,
        payload.source,
        tuple(entry.name for entry in group[1:]),
    )


def _extent(entry: NamedPayload) -> Extent:
    payload = entry.payload
    start = payload.position
    return Extent(entry.name, payload.file, start, start + payload.nbytes)


def _uncovered(file: CheckpointFile, reason: str, seen: Uncovered) -> Finding:
    severity, what, remedy = _REASONS[reason]
    return finding(
        "WG119",
        f"{shown(file.name)} has {counted(seen.count, 'tensor')} {what}; "
        f"the first is {shown(seen.first)}",
        severity=severity,
        file=file.name,
        offset=seen.start,
        tensor=seen.first,
        evidence={"tensors": seen.count},
        remedy=remedy,
    )
