"""Seeded mutations of ONNX files: a parse ends in tensors or CheckpointError, soon and small."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from weightguard.checkpoint.files import Folder
from weightguard.checkpoint.onnx import is_onnx, parse_onnx
from weightguard.errors import CheckpointError

MUTANTS = 2000
SLOWEST_PARSE = 60.0
PEAK_BYTES = 32 << 20
INTERESTING = (0, 1, 2, 7, 8, 0x0A, 0x12, 0x1A, 0x2A, 0x3A, 0x4A, 0x6A, 0x7F, 0x80, 0xFF)


def rich_model() -> bytes:
    """Return a small model that has every construct the reader knows."""
    floats = np.arange(8, dtype=np.float32)
    outside = TensorProto(name="x", dims=[4], data_type=1)
    outside.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "16"), ("length", "16")):
        outside.external_data.add(key=key, value=value)
    tensors = [
        numpy_helper.from_array(floats, "raw"),
        helper.make_tensor("f", TensorProto.FLOAT, [8], floats),
        helper.make_tensor("i", TensorProto.INT32, [3], [-1, 2, 300]),
        helper.make_tensor("h", TensorProto.FLOAT16, [3], [1, 2, 3]),
        helper.make_tensor("q", TensorProto.INT4, [4], [1, -2, 3, -4]),
        helper.make_tensor("s", TensorProto.FLOAT6E2M3, [8], floats / 8),
        TensorProto(name="t", dims=[1], data_type=TensorProto.STRING, string_data=[b"text"]),
        outside,
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(floats[:2], "sp"),
        numpy_helper.from_array(np.array([0, 5]), "spi"),
        [8],
    )
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=tensors[0])], "b", [], [output], tensors[2:3]
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["fs"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["is"], value_ints=[1, -2]),
        helper.make_node("Constant", [], ["sv"], sparse_value=sparse),
    ]
    graph = helper.make_graph(nodes, "g", [], [output], tensors)
    graph.sparse_initializer.append(sparse)
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("d", "f", [], ["y"], nodes[1:2], opset)
    model: ModelProto = helper.make_model(graph, functions=[function], opset_imports=opset)
    model.training_info.add().algorithm.CopyFrom(branch)
    return bytes(model.SerializeToString())


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    # lengths of enclosing messages survive changes in place, so these reach deepest
    actions = rng.choice((2, 6))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        position = rng.randrange(len(out))
        action = rng.randrange(actions)
        if action == 0:
            out[position] ^= 1 << rng.randrange(8)
        elif action == 1:
            out[position] = rng.choice(INTERESTING)
        elif action == 2:
            out[position:position] = rng.randbytes(rng.randrange(1, 12))
        elif action == 3:
            del out[position : position + rng.randrange(1, 24)]
        elif action == 4:
            piece = out[position : position + rng.randrange(1, 200)]
            target = rng.randrange(len(out) + 1)
            out[target:target] = piece
        else:
            out[position : position + 10] = b"\xff" * 9 + b"\x01"
        if not out:
            break
    return bytes(out)


def outcome(folder_path: Path) -> str:
    folder = Folder(folder_path)
    try:
        file = folder.open("model.onnx")
        recognised = is_onnx(file)
        result = parse_onnx(file, folder)
        for tensor in result.tensors:
            assert tensor.nbytes <= 4096
            tensor.read()
    except CheckpointError as error:
        return error.finding.rule if error.finding.message.isprintable() else "unprintable"
    finally:
        folder.close()
    assert recognised
    names = [name for t in result.tensors for name in (t.name, *t.aliases)]
    assert len(set(names)) == len(names)
    return "read"


def test_mutations_never_surprise(tmp_path: Path, claim: Callable[[str], None]) -> None:
    rng = random.Random(20240229)
    seed = rich_model()
    (tmp_path / "w.bin").write_bytes(bytes(32))
    path = tmp_path / "model.onnx"
    path.write_bytes(seed)
    assert outcome(tmp_path) == "read"
    seen: dict[str, int] = {}
    peak = 0
    for number in range(MUTANTS):
        traced = number % 16 == 0
        if traced:
            tracemalloc.start()
        path.write_bytes(mutated(seed, rng))
        started = time.process_time()
        result = outcome(tmp_path)
        assert time.process_time() - started < SLOWEST_PARSE
        seen[result] = seen.get(result, 0) + 1
        if traced:
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    claim(f"ONNX fuzz: {MUTANTS} mutated models, {dict(sorted(seen.items()))}")
    assert peak < PEAK_BYTES
    assert "unprintable" not in seen
    assert {"read", "WG101", "WG102", "WG103", "WG107"} <= set(seen)


def test_every_truncation_is_refused_or_read_whole(tmp_path: Path) -> None:
    seed = rich_model()
    (tmp_path / "w.bin").write_bytes(bytes(32))
    path = tmp_path / "model.onnx"
    results = []
    for size in range(0, len(seed), 3):
        path.write_bytes(seed[:size])
        results.append(outcome(tmp_path))
    assert set(results) <= {"WG101", "WG102", "WG103", "read"}
    # protobuf has no end mark: cuts between the last top-level fields leave a valid model
    assert results.count("read") <= 3
