"""ONNX reading against the onnx package as the oracle."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from weightguard.checkpoint.container import ParsedFile
from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.checkpoint.onnx import is_onnx, parse_onnx
from weightguard.tensor import TensorView

NAMES: dict[int, str] = {
    TensorProto.FLOAT: "F32",
    TensorProto.UINT8: "U8",
    TensorProto.INT8: "I8",
    TensorProto.UINT16: "U16",
    TensorProto.INT16: "I16",
    TensorProto.INT32: "I32",
    TensorProto.INT64: "I64",
    TensorProto.BOOL: "BOOL",
    TensorProto.FLOAT16: "F16",
    TensorProto.DOUBLE: "F64",
    TensorProto.UINT32: "U32",
    TensorProto.UINT64: "U64",
    TensorProto.COMPLEX64: "C64",
    TensorProto.COMPLEX128: "C128",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "F8_E4M3",
    TensorProto.FLOAT8E4M3FNUZ: "F8_E4M3FNUZ",
    TensorProto.FLOAT8E5M2: "F8_E5M2",
    TensorProto.FLOAT8E5M2FNUZ: "F8_E5M2FNUZ",
    TensorProto.UINT4: "U4",
    TensorProto.INT4: "I4",
    TensorProto.FLOAT4E2M1: "F4",
    TensorProto.FLOAT8E8M0: "F8_E8M0",
    TensorProto.UINT2: "U2",
    TensorProto.INT2: "I2",
    TensorProto.FLOAT6E2M3: "F6_E2M3",
    TensorProto.FLOAT6E3M2: "F6_E3M2",
}
SIGNED = {
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.INT4,
    TensorProto.INT2,
}


def values_for(data_type: int, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(data_type)
    count = math.prod(shape)
    if data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return (rng.standard_normal(count) + 1j * rng.standard_normal(count)).reshape(shape)
    if data_type == TensorProto.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    numpy_type = helper.tensor_dtype_to_np_dtype(data_type)
    if numpy_type.kind in "iu" and numpy_type.itemsize >= 1 and data_type <= TensorProto.UINT64:
        info = np.iinfo(numpy_type)
        array = rng.integers(info.min, info.max, shape, numpy_type, endpoint=True)
        array.flat[:2] = info.min, info.max
        return array
    if data_type in (TensorProto.UINT4, TensorProto.INT4, TensorProto.UINT2, TensorProto.INT2):
        bits = 4 if data_type in (TensorProto.UINT4, TensorProto.INT4) else 2
        low = -(1 << bits - 1) if data_type in SIGNED else 0
        return rng.integers(low, low + (1 << bits), shape)
    if data_type == TensorProto.FLOAT8E8M0:
        return 2.0 ** rng.integers(-10, 10, shape)
    return rng.standard_normal(shape)


def canonical(tensor: TensorProto, folder: Path | None = None) -> bytes:
    array = numpy_helper.to_array(tensor, str(folder or ""))
    return bytes(numpy_helper.from_array(array).raw_data)


def model_of(
    *initializers: TensorProto, nodes: tuple[onnx.NodeProto, ...] = (), **parts: Any
) -> onnx.ModelProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", [], [output], list(initializers))
    for key in ("sparse_initializer",):
        graph.sparse_initializer.extend(parts.pop(key, ()))
    return helper.make_model(graph, **parts)


def saved(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def parsed(path: Path, root: Path | None = None) -> ParsedFile:
    folder = Folder(root or path.parent)
    file = folder.open(str(path.relative_to(folder.root)))
    return parse_onnx(file, folder)


def by_name(result: ParsedFile) -> dict[str, TensorView]:
    return {tensor.name: tensor for tensor in result.tensors}


def assert_equal(view: TensorView, expected: TensorProto, folder: Path | None = None) -> None:
    assert view.dtype.name == NAMES[expected.data_type]
    assert view.shape == tuple(expected.dims)
    assert bytes(view.read()) == canonical(expected, folder)


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("data_type", sorted(NAMES), ids=lambda t: NAMES[t])
def test_every_element_type_equals_the_oracle(tmp_path: Path, data_type: int, raw: bool) -> None:
    shape = (3, 8)
    typed = helper.make_tensor("w", data_type, shape, values_for(data_type, shape).flatten())
    tensor = typed
    if raw:
        tensor = numpy_helper.from_array(numpy_helper.to_array(typed), "w")
        assert tensor.HasField("raw_data")
    path = saved(tmp_path, model_of(tensor))
    result = parsed(path)
    (view,) = result.tensors
    assert_equal(view, typed)
    assert result.findings == ()
    if raw:
        data = path.read_bytes()
        assert view.offset is not None
        assert data[view.offset : view.offset + view.nbytes] == tensor.raw_data


def test_the_table_covers_every_type_of_the_installed_onnx() -> None:
    known = set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}
    assert set(NAMES) == known


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize(
    "data_type",
    [TensorProto.INT4, TensorProto.FLOAT4E2M1, TensorProto.UINT2, TensorProto.FLOAT6E3M2],
)
def test_elements_that_do_not_fill_a_byte_are_read_as_bytes(
    tmp_path: Path, data_type: int, raw: bool
) -> None:
    typed = helper.make_tensor("w", data_type, (7,), values_for(data_type, (7,)))
    tensor = numpy_helper.from_array(numpy_helper.to_array(typed), "w") if raw else typed
    found = parsed(saved(tmp_path, model_of(tensor)))
    view, dims = sorted(found.tensors, key=lambda t: t.name)
    assert view.dtype.name == "U8"
    assert view.shape == (len(canonical(typed)),)
    assert bytes(view.read()) == canonical(typed)
    assert (dims.name, dims.dtype.name, dims.shape) == (f"w.{NAMES[data_type]}.dims", "I64", (1,))
    assert bytes(dims.read()) == (7).to_bytes(8, "little")
    assert [(f.rule, f.severity, f.location.tensor) for f in found.findings] == [
        ("WG119", "info", "w")
    ]


@pytest.mark.parametrize("shape", [(), (0,), (4, 0, 3), (1,)])
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("data_type", [TensorProto.FLOAT, TensorProto.INT64])
def test_scalars_and_empty_tensors(
    tmp_path: Path, shape: tuple[int, ...], raw: bool, data_type: int
) -> None:
    array = np.zeros(shape, np.float32 if data_type == TensorProto.FLOAT else np.int64) + 7
    tensor = (
        numpy_helper.from_array(array, "w")
        if raw
        else helper.make_tensor("w", data_type, shape, array.flatten())
    )
    (view,) = parsed(saved(tmp_path, model_of(tensor))).tensors
    assert view.shape == shape
    assert bytes(view.read()) == array.tobytes()


def test_long_varint_lists_are_read_in_any_pieces(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(-(2**63), 2**63 - 1, 200_001) >> rng.integers(0, 64, 200_001)
    model = model_of(helper.make_tensor("w", TensorProto.INT64, array.shape, array))
    (view,) = parsed(saved(tmp_path, model)).tensors
    expected = array.astype("<i8").tobytes()
    assert bytes(view.read()) == expected
    for start, stop in [(0, 1), (524_280, 524_296), (524_288, 1_048_577), (1_600_001, 1_600_008)]:
        assert bytes(view.read(start, stop)) == expected[start:stop]


def constant(output: str, **attribute: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], **attribute)


def test_constant_nodes_in_all_their_forms(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "ignored")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([5.0, 6.0], np.float32), "v"),
        numpy_helper.from_array(np.array([1, 4], np.int64), "i"),
        [2, 3],
    )
    nodes = (
        constant("t", value=value),
        constant("s", sparse_value=sparse),
        constant("f", value_float=1.5),
        constant("fs", value_floats=[1.0, -2.0, 3.5]),
        constant("i", value_int=-7),
        constant("is", value_ints=[1, -1, 2**62]),
        constant("text", value_string=b"abc"),
        helper.make_node("Relu", ["t"], ["y"]),
    )
    result = parsed(saved(tmp_path, model_of(nodes=nodes)))
    got = {name: (t.dtype.name, t.shape, bytes(t.read())) for name, t in by_name(result).items()}
    assert got == {
        "t": ("F32", (2, 3), value.raw_data),
        "s.values": ("F32", (2,), np.array([5.0, 6.0], np.float32).tobytes()),
        "s.indices": ("I64", (2,), np.array([1, 4], np.int64).tobytes()),
        "s.dims": ("I64", (2,), np.array([2, 3], np.int64).tobytes()),
        "f": ("F32", (), np.float32(1.5).tobytes()),
        "fs": ("F32", (3,), np.array([1.0, -2.0, 3.5], np.float32).tobytes()),
        "i": ("I64", (), np.int64(-7).tobytes()),
        "is": ("I64", (3,), np.array([1, -1, 2**62], np.int64).tobytes()),
    }
    (note,) = result.findings
    assert (note.rule, note.severity) == ("WG119", "info")


def subgraph(
    name: str, *initializers: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()
) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, [], [output], list(initializers))


def scalar(name: str, value: float) -> TensorProto:
    return numpy_helper.from_array(np.array([value], np.float32), name)


def test_subgraphs_functions_and_training_get_unique_paths(tmp_path: Path) -> None:
    inner = helper.make_node("Loop", ["n", "c"], ["o"], body=subgraph("b", scalar("w", 4)))
    branch = helper.make_node(
        "If",
        ["c"],
        ["y"],
        then_branch=subgraph("t", scalar("w", 2), nodes=(inner,)),
        else_branch=subgraph("e", scalar("w", 3), nodes=(constant("k", value=scalar("", 5)),)),
    )
    many = helper.make_node("Custom", [], ["z"], bodies=[subgraph("a", scalar("w", 8))])
    function = helper.make_function(
        "dom", "fn", [], ["y"], [constant("y", value=scalar("", 6))],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model = model_of(
        scalar("w", 1),
        scalar("If_0/then_branch/w", 9),
        nodes=(branch, many),
        functions=[function],
    )
    training = model.training_info.add()
    training.algorithm.CopyFrom(subgraph("train", scalar("w", 7)))
    result = parsed(saved(tmp_path, model))
    got = {name: np.frombuffer(t.read(), "<f4")[0] for name, t in by_name(result).items()}
    assert got == {
        "w": 1,
        "If_0/then_branch/w~2": 2,
        "If_0/else_branch/w": 3,
        "If_0/then_branch/Loop_0/body/w": 4,
        "If_0/else_branch/k": 5,
        "function:dom.fn/y": 6,
        "training_0/algorithm/w": 7,
        "Custom_1/bodies[0]/w": 8,
        "If_0/then_branch/w": 9,
    }


def test_attributes_of_other_nodes(tmp_path: Path) -> None:
    fill = helper.make_node("ConstantOfShape", ["s"], ["c"], value=scalar("", 3))
    both = helper.make_node("Custom", [], ["d"], name="n", parts=[scalar("a", 1), scalar("b", 2)])
    tree = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], nodes_values=[0.5, 0.25])
    plain = helper.make_node("Conv", ["x"], ["z"], pads=[1, 1], alpha=0.5)
    result = by_name(parsed(saved(tmp_path, model_of(nodes=(fill, both, tree, plain)))))
    assert set(result) == {"c.value", "d.parts[0]", "d.parts[1]", "y.nodes_values"}
    assert np.frombuffer(result["y.nodes_values"].read(), "<f4").tolist() == [0.5, 0.25]


def test_sparse_initializers(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([5, 6], np.float16), "w"),
        numpy_helper.from_array(np.array([[0, 1], [1, 2]], np.int64), ""),
        [2, 3],
    )
    got = by_name(parsed(saved(tmp_path, model_of(sparse_initializer=[sparse]))))
    assert set(got) == {"w.values", "w.indices", "w.dims"}
    assert got["w.indices"].shape == (2, 2)


def test_unpacked_and_split_numbers_are_joined_as_protobuf_does(tmp_path: Path) -> None:
    from weightguard.checkpoint.onnx.protobuf import encoded

    def length(number: int, payload: bytes) -> bytes:
        return encoded(number << 3 | 2) + encoded(len(payload)) + payload

    floats = np.arange(5, dtype="<f4")
    unpacked = b"".join(b"\x25" + v.tobytes() for v in floats[:3])
    body = b"\x08\x05\x10\x01" + unpacked + length(4, floats[3:].tobytes()) + length(8, b"f")
    ints = b"\x0a\x01\x03\x10\x06\x28\x01" + length(5, b"\x02\x80\x01") + length(8, b"i")
    late = b"\x10\x07" + length(9, bytes(4)) + length(9, bytes(8)) + b"\x10\x01\x08\x02"
    graph = length(5, body) + length(5, ints)
    data = b"\x08\x08" + length(7, graph) + length(7, length(5, late)) + length(8, b"\x10\x11")
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    oracle = onnx.load_model_from_string(data).graph.initializer
    result = parsed(path).tensors
    assert [bytes(t.read()) for t in result] == [canonical(t) for t in oracle]
    assert bytes(result[1].read()) == np.array([1, 2, 128], "<i4").tobytes()


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data_over_files(tmp_path: Path, one_file: bool) -> None:
    rng = np.random.default_rng(3)
    arrays = {f"w{i}": rng.standard_normal((64, 16 + i)).astype(np.float32) for i in range(5)}
    model = model_of(*(numpy_helper.from_array(a, n) for n, a in arrays.items()))
    path = tmp_path / "sub" / "model.onnx"
    path.parent.mkdir()
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="weights.bin" if one_file else None,
        size_threshold=16,
    )
    folder = Folder(tmp_path)
    result = parse_onnx(folder.open("sub/model.onnx"), folder)
    assert {n: bytes(t.read()) for n, t in by_name(result).items()} == {
        n: a.tobytes() for n, a in arrays.items()
    }
    assert len(folder.opened) == (2 if one_file else 6)
    assert all(t.shard.startswith("sub/") for t in result.tensors)
    assert result.findings == ()


def external(name: str, shape: tuple[int, ...], data_type: int = 1, **keys: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=data_type, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **keys}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_the_same_external_range_is_an_alias_and_a_shifted_one_an_overlap(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(range(64)))
    model = model_of(
        external("a", (4,), length="16"),
        external("b", (4,), offset="0", length="16", checksum="ignored"),
        external("c", (4,), offset="8"),
        external("d", (2, 2), offset="48"),
    )
    result = parsed(saved(tmp_path, model))
    assert [(t.name, t.aliases, t.offset) for t in result.tensors] == [
        ("a", ("b",), 0),
        ("c", (), 8),
        ("d", (), 48),
    ]
    (overlap,) = result.findings
    assert (overlap.rule, overlap.location.tensor, overlap.location.offset) == ("WG105", "c", 8)


def test_a_cache_snapshot_may_be_made_of_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "rev"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "one").write_bytes(bytes(16))
    (blobs / "two").write_bytes(model_of(external("a", (4,))).SerializeToString())
    (snapshot / "w.bin").symlink_to("../../blobs/one")
    (snapshot / "model.onnx").symlink_to("../../blobs/two")
    folder = Folder(snapshot, blobs)
    (view,) = parse_onnx(folder.open("model.onnx"), folder).tensors
    assert (view.shard, bytes(view.read())) == ("w.bin", bytes(16))


def test_metadata(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("com.x", 1), helper.make_opsetid("", 17)]
    model = model_of(scalar("w", 1), opset_imports=opsets, producer_name="p" * 1000)
    metadata = parsed(saved(tmp_path, model)).metadata
    assert metadata["opset_import"] == "ai.onnx=17, com.x=1"
    assert metadata["producer_name"] == "p" * 200


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", False),
        (b"\x08\x08", False),
        (b"\x08\x08\x3a\x00", False),
        (b"\x08\x08\x3a\x02\x12\x00", True),
        (b"\x3a\x02\x12\x00\x08\x08", True),
        (b"\x08\x08\x3a\xff\xff\x01\x12\x00", True),
        (b"\x08\x00\x3a\x02\x12\x00", False),
        (b"<!DOCTYPE html><html>", False),
        (b"GGUF\x03\x00\x00\x00", False),
        (b"PK\x03\x04" + bytes(100), False),
        (b"\x80\x02\x8a\x0al\xfc\x9c", False),
        (b'{"weight_map": {}}', False),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", False),
        (bytes(4096), False),
    ],
)
def test_recognition_by_structure(tmp_path: Path, data: bytes, expected: bool) -> None:
    path = tmp_path / "f"
    path.write_bytes(data)
    assert is_onnx(CheckpointFile(path, "f")) is expected


def test_random_bytes_are_rarely_taken_for_a_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / "f"
    hits = 0
    for _ in range(1000):
        path.write_bytes(b"\x08\x08" + rng.bytes(200))
        file = CheckpointFile(path, "f")
        hits += is_onnx(file)
        file.close()
    assert hits < 10


def test_payloads_stay_unread_while_parsing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [numpy_helper.from_array(np.zeros(1 << 20, np.float32), f"w{i}") for i in range(16)]
    path = saved(tmp_path, model_of(*tensors))
    read = 0
    original = CheckpointFile.read_into

    def counted(self: CheckpointFile, offset: int, buffer: memoryview) -> None:
        nonlocal read
        read += len(buffer)
        original(self, offset, buffer)

    monkeypatch.setattr(CheckpointFile, "read_into", counted)
    assert len(parsed(path).tensors) == 16
    assert read < 8 << 20


def test_the_core_does_not_import_onnx() -> None:
    code = "import sys, weightguard.checkpoint.onnx; sys.exit('onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
