"""Walks over the tensors that an ONNX model stores, in the onnx package's own objects."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from weightguard.checkpoint.onnx.types import TYPES


def initializers(graph: GraphProto, path: str = "") -> Iterator[tuple[str, TensorProto]]:
    """Yield the initializers of a graph and of the graphs inside it, by their full names.

    A name inside a subgraph has the path ``node/attribute/`` in front.
    """
    for tensor in graph.initializer:
        yield path + tensor.name, tensor
    for position, node in enumerate(graph.node):
        for attribute in node.attribute:
            place = f"{path}{node.op_type}_{position}/{attribute.name}"
            if attribute.type == AttributeProto.GRAPH:
                yield from initializers(attribute.g, f"{place}/")
            for index, inner in enumerate(attribute.graphs):
                yield from initializers(inner, f"{place}[{index}]/")


def nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from nodes(attribute.g)
            for inner in attribute.graphs:
                yield from nodes(inner)


def canonical_dtype(tensor: TensorProto) -> tuple[str, tuple[int, ...]]:
    """Return dtype name and shape of a tensor as a fingerprint has them."""
    kind = TYPES.get(tensor.data_type)
    shape = tuple(tensor.dims)
    nbytes = stored_bytes(tensor)
    if kind is None or nbytes % kind.dtype.block_bytes or kind.nbytes(_elements(shape)) != nbytes:
        return "U8", (nbytes,)
    if _elements(shape) % kind.dtype.block_elements:
        return "U8", (nbytes,)
    return kind.dtype.name, shape


def stored_bytes(tensor: TensorProto) -> int:
    """Return the bytes of a tensor's data, wherever it is stored."""
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    kind = TYPES.get(tensor.data_type)
    if kind is None:
        return len(tensor.SerializeToString())
    return kind.nbytes(_elements(tuple(tensor.dims)))


def raw_bytes(tensor: TensorProto) -> bytes:
    """Return the little-endian bytes of a tensor that is stored in the graph itself."""
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    data: bytes = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
    return data


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
