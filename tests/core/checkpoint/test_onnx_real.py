"""ONNX models that others wrote, against the onnx package as the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import AttributeProto, GraphProto, TensorProto, numpy_helper

from tests.real_models import magika_onnx
from weightguard.checkpoint.files import Folder
from weightguard.checkpoint.onnx import is_onnx, parse_onnx

SHIPPED = sorted(Path(onnx.__file__).parent.rglob("*.onnx"))


def oracle(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        if attribute.type == AttributeProto.GRAPH:
            yield from oracle(attribute.g)
        yield from attribute.tensors
        for inner in attribute.graphs:
            yield from oracle(inner)


def compare(path: Path) -> int:
    """Check that every tensor of the oracle is read, without a finding; return how many."""
    folder = Folder(path.parent)
    file = folder.open(path.name)
    assert is_onnx(file)
    result = parse_onnx(file, folder)
    expected = Counter(
        (tuple(t.dims), bytes(numpy_helper.from_array(numpy_helper.to_array(t)).raw_data))
        for t in oracle(onnx.load(path).graph)
        if t.data_type != TensorProto.STRING
    )
    found = Counter((t.shape, bytes(t.read())) for t in result.tensors)
    folder.close()
    assert not expected - found
    assert result.findings == ()
    return expected.total()


def test_models_that_the_onnx_package_ships() -> None:
    assert len(SHIPPED) > 50
    assert sum(map(compare, SHIPPED)) > 1000


@pytest.mark.real
def test_magika() -> None:
    path = magika_onnx()
    assert compare(path) == 36
    initializers = {i.name: i for i in onnx.load(path).graph.initializer}
    folder = Folder(path.parent)
    tensors = {t.name: t for t in parse_onnx(folder.open(path.name), folder).tensors}
    data = path.read_bytes()
    for name, initializer in initializers.items():
        view = tensors[name]
        assert view.offset is not None
        assert data[view.offset : view.offset + view.nbytes] == initializer.raw_data
    folder.close()
