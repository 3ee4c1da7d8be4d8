"""The walk over an ONNX model's graphs: every place a tensor can stand, each under one name.

Source: onnx.proto (1.23). An initializer of the main graph keeps its name. A Constant node's
tensor is named after the node's output, a tensor attribute of another node ``output.attribute``.
Tensors of a subgraph get the path ``OpType_position/attribute/`` in front, those of a function
``function:domain.name/`` and those of training ``training_position/...``. A sparse tensor is
three: ``name.values``, ``name.indices`` and ``name.dims``. One whose elements do not fill its last
byte is its bytes in U8, and its shape as ``name.DTYPE.dims``. Names that would collide get ``~2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from weightguard.checkpoint.names import shown
from weightguard.checkpoint.onnx import protobuf, types
from weightguard.checkpoint.onnx.attribute import (
    GRAPH,
    GRAPHS,
    SPARSE,
    SPARSES,
    TENSOR,
    TENSORS,
    add_part,
    numbers,
    read_attribute,
)
from weightguard.checkpoint.onnx.external import ExternalFiles
from weightguard.checkpoint.onnx.names import MAX_NODE_NAME_CHARS, UniqueNames, label
from weightguard.checkpoint.onnx.payload import Payload, integers, is_padded, locate
from weightguard.checkpoint.onnx.protobuf import LENGTH, Message, Span, Wire
from weightguard.checkpoint.onnx.sparse import SparseMessage, read_sparse
from weightguard.checkpoint.onnx.tensor import TensorMessage, read_tensor
from weightguard.errors import malformed

MAX_GRAPH_DEPTH = 20
"""Graphs inside each other, three messages a level: 60 of the 64 nested messages we allow."""

MAX_TENSORS = 262_144
"""Tensors of one model, constants included."""

MAX_PATH_CHARS = 512
"""The path in front of a nested tensor's name, repeated in each of them."""

_NODE, _INITIALIZER, _SPARSE_INITIALIZER = (protobuf.tag(n, LENGTH) for n in (1, 5, 15))
_OUTPUT, _NODE_NAME, _OP_TYPE, _ATTRIBUTE = (protobuf.tag(n, LENGTH) for n in (2, 3, 4, 5))
_FUNCTION_NAME, _FUNCTION_NODE, _FUNCTION_DOMAIN, _FUNCTION_ATTRIBUTE, _OVERLOAD = (
    protobuf.tag(n, LENGTH) for n in (1, 7, 10, 11, 13)
)
_CONSTANT = b"Constant"
_INITIALIZATION, _ALGORITHM = (protobuf.tag(n, LENGTH) for n in (1, 2))


@dataclass(frozen=True, slots=True)
class NamedPayload:
    """A tensor under its unique name."""

    name: str
    payload: Payload


@dataclass(frozen=True, slots=True)
class Node:
    """A node's place: ``position`` in the graph at ``path``, and its naming fields, unread."""

    path: str
    position: int
    depth: int
    spans: Mapping[int, Span]

    def is_constant(self, wire: Wire) -> bool:
        """Return whether this is a Constant node."""
        start, end = self.spans.get(_OP_TYPE, (0, 0))
        return end - start == len(_CONSTANT) and wire.copy(start, end) == _CONSTANT

    def place(self, wire: Wire) -> str:
        """Return ``OpType_position``, the node's part of a subgraph's path."""
        return f"{label(self._text(wire, _OP_TYPE), 'Node')}_{self.position}"

    def output(self, wire: Wire) -> str:
        """Return the first output's name, else the node's, else its place."""
        for key in (_OUTPUT, _NODE_NAME):
            name = self._text(wire, key)
            if 0 < len(name) <= MAX_NODE_NAME_CHARS:
                return name
        return self.place(wire)

    def _text(self, wire: Wire, key: int) -> str:
        span = self.spans.get(key)
        return "" if span is None else wire.text(span, "a node's name")


@dataclass(slots=True)
class Uncovered:
    """Tensors that could not be fingerprinted for one reason: how many, and the first one."""

    count: int
    first: str
    start: int


@dataclass(slots=True)
class GraphWalk:
    """Collects the tensors of a model's graphs in ``tensors``, each located but unread.

    Every method raises CheckpointError as ``read_tensor`` and ``locate`` do, WG104 for two
    initializers of one name in a graph, and WG116 above the limits of this module.
    ``uncovered`` counts tensors without numbers by reason: ``string``, ``undefined``, ``segment``;
    and, as ``padded``, those fingerprinted as bytes.
    """

    wire: Wire
    external: ExternalFiles
    tensors: list[NamedPayload] = field(default_factory=list)
    uncovered: dict[str, Uncovered] = field(default_factory=dict)
    _names: UniqueNames = field(default_factory=UniqueNames)
    _left: int = MAX_TENSORS

    def graph(self, message: Message, path: str, depth: int) -> None:
        """Walk a GraphProto whose tensors get ``path`` in front of their names."""
        if depth > MAX_GRAPH_DEPTH or len(path) > MAX_PATH_CHARS:
            raise self.wire.error("WG116", message[0][0], "graphs nested too deep")
        self._initializers(message, path)
        self._nodes(message, _NODE, path, depth)

    def function(self, span: Span) -> None:
        """Walk a FunctionProto: its nodes and the defaults of its attributes."""
        parts = {_FUNCTION_NAME: "", _FUNCTION_DOMAIN: "", _OVERLOAD: ""}
        for key, start, end in self.wire.fields((span,)):
            if key in parts:
                parts[key] = label(self.wire.text((start, end), "a function name"), "long")
        overload = f":{parts[_OVERLOAD]}" if parts[_OVERLOAD] else ""
        path = f"function:{parts[_FUNCTION_DOMAIN]}.{parts[_FUNCTION_NAME]}{overload}/"
        self._nodes((span,), _FUNCTION_NODE, path, 1)
        defaults = Node(path, 0, 1, {})
        for key, start, end in self.wire.fields((span,)):
            if key == _FUNCTION_ATTRIBUTE:
                self._attribute((start, end), defaults, constant=False)

    def training(self, span: Span, position: int) -> None:
        """Walk the two graphs of a TrainingInfoProto."""
        for wanted, name in ((_INITIALIZATION, "initialization"), (_ALGORITHM, "algorithm")):
            graph: list[Span] = []
            for key, start, end in self.wire.fields((span,)):
                if key == wanted:
                    add_part(self.wire, graph, (start, end))
            if graph:
                self.graph(graph, f"training_{position}/{name}/", 1)

    def _initializers(self, message: Message, path: str) -> None:
        names: set[str] = set()
        for key, start, end in self.wire.fields(message):
            if key == _INITIALIZER:
                tensor = read_tensor(self.wire, ((start, end),))
                self._record(tensor, path + self._new_name(tensor.name, start, names))
            elif key == _SPARSE_INITIALIZER:
                sparse = read_sparse(self.wire, ((start, end),))
                self._sparse(sparse, path + self._new_name(sparse.values.name, start, names))

    def _new_name(self, name: str, start: int, names: set[str]) -> str:
        if name and name in names:
            raise malformed(
                "WG104",
                f"{self.wire.file.name} has a second initializer {shown(name)} at byte {start}",
                file=self.wire.file.name,
                offset=start,
                tensor=name,
            )
        names.add(name)
        return name or "initializer"

    def _nodes(self, message: Message, wanted: int, path: str, depth: int) -> None:
        position = 0
        for key, start, end in self.wire.fields(message):
            if key == wanted:
                self._node((start, end), position, path, depth)
                position += 1

    def _node(self, span: Span, position: int, path: str, depth: int) -> None:
        spans: dict[int, Span] = {}
        attributes: list[Span] = []
        for key, start, end in self.wire.fields((span,)):
            if key == _ATTRIBUTE:
                add_part(self.wire, attributes, (start, end))
            elif key == _OUTPUT:
                spans.setdefault(_OUTPUT, (start, end))
            elif key in (_NODE_NAME, _OP_TYPE):
                spans[key] = (start, end)
        if attributes:
            node = Node(path, position, depth, spans)
            constant = node.is_constant(self.wire)
            for attribute in attributes:
                self._attribute(attribute, node, constant=constant)

    def _attribute(self, span: Span, node: Node, *, constant: bool) -> None:
        attribute = read_attribute(self.wire, span, constant=constant)
        if attribute is None:
            return
        own = label(self.wire.text(attribute.name, "an attribute's name"), "attribute")
        name = f"{node.path}{node.output(self.wire)}" + ("" if constant else f".{own}")
        for payload in numbers(self.wire, attribute, name):
            self._add(name, payload)
        if attribute.has_text:
            self._skip("string", name, attribute.start)
        if attribute.nested:
            self._nested_tensors(attribute.nested, name)
            path = f"{node.path}{node.place(self.wire)}/{own}"
            self._nested_graphs(attribute.nested, path, node.depth + 1)

    def _nested_tensors(self, nested: dict[int, list[Span]], name: str) -> None:
        if TENSOR in nested:
            self._record(read_tensor(self.wire, nested[TENSOR]), name)
        for index, span in enumerate(nested.get(TENSORS, ())):
            self._record(read_tensor(self.wire, (span,)), f"{name}[{index}]")
        if SPARSE in nested:
            self._sparse(read_sparse(self.wire, nested[SPARSE]), name)
        for index, span in enumerate(nested.get(SPARSES, ())):
            self._sparse(read_sparse(self.wire, (span,)), f"{name}[{index}]")

    def _nested_graphs(self, nested: dict[int, list[Span]], path: str, depth: int) -> None:
        if GRAPH in nested:
            self.graph(nested[GRAPH], f"{path}/", depth)
        for index, span in enumerate(nested.get(GRAPHS, ())):
            self.graph((span,), f"{path}[{index}]/", depth)

    def _sparse(self, sparse: SparseMessage, name: str) -> None:
        self._record(sparse.values, f"{name}.values")
        self._record(sparse.indices, f"{name}.indices")
        self._add(f"{name}.dims", sparse.dims)

    def _record(self, tensor: TensorMessage, name: str) -> None:
        if tensor.has_segment:
            self._skip("segment", name, tensor.start)
        elif tensor.data_type == types.STRING:
            self._skip("string", name, tensor.start)
        elif tensor.data_type == types.UNDEFINED:
            self._skip("undefined", name, tensor.start)
        else:
            self._add(name, locate(self.wire, tensor, name, self.external))
            if is_padded(tensor):
                self._add_form(tensor, name)

    def _add_form(self, tensor: TensorMessage, name: str) -> None:
        """Add what the bytes of a padded tensor do not tell: its dtype, by name, and its shape."""
        dtype = types.TYPES[tensor.data_type].dtype.name
        dims = integers(self.wire, tensor.dims, (len(tensor.dims),), tensor.start)
        self._add(f"{name}.{dtype}.dims", dims)
        self._note("padded", name, tensor.start)

    def _skip(self, reason: str, name: str, start: int) -> None:
        self._count(start)
        self._note(reason, name, start)

    def _note(self, reason: str, name: str, start: int) -> None:
        seen = self.uncovered.setdefault(reason, Uncovered(0, name, start))
        seen.count += 1

    def _add(self, name: str, payload: Payload) -> None:
        self._count(payload.position)
        self.tensors.append(NamedPayload(self._names.claim(name), payload))

    def _count(self, place: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise self.wire.error("WG116", place, f"more than {MAX_TENSORS} tensors")
