"""Small ONNX models with every kind of weight that a session holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

WIDTH = 64


def weights(generator: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return (generator.standard_normal(shape) * 0.2).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    tensors: dict[str, NDArray],
) -> onnx.ModelProto:
    return h.make_model(
        h.make_graph(
            nodes, "g", inputs, outputs, [nh.from_array(a, name) for name, a in tensors.items()]
        ),
        opset_imports=[h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )


def perceptron(seed: int = 0) -> onnx.ModelProto:
    """Two products, one of them with a weight that is shared and tied under a second name."""
    generator = np.random.default_rng(seed)
    tensors = {
        "first": weights(generator, WIDTH, 256),
        "second": weights(generator, 256, WIDTH),
        "bias": weights(generator, WIDTH),
    }
    nodes = [
        h.make_node("MatMul", ["x", "first"], ["a"]),
        h.make_node("Tanh", ["a"], ["b"]),
        h.make_node("MatMul", ["b", "second"], ["c"]),
        h.make_node("Add", ["c", "bias"], ["d"]),
        h.make_node("MatMul", ["d", "first"], ["e"]),
        h.make_node("MatMul", ["e", "second"], ["y"]),
    ]
    return model(
        nodes,
        [h.make_tensor_value_info("x", T.FLOAT, ["n", WIDTH])],
        [h.make_tensor_value_info("y", T.FLOAT, ["n", WIDTH])],
        tensors,
    )


def everything(seed: int = 1) -> onnx.ModelProto:
    """Embedding, Gemm, integer products, If, Loop, LSTM, Conv and a block-quantised product."""
    generator = np.random.default_rng(seed)

    def f(*shape: int) -> NDArray[np.float32]:
        return weights(generator, *shape)

    rows = ["n", WIDTH]

    def branch(name: str, weight: str, bias: str) -> onnx.GraphProto:
        return h.make_graph(
            [
                h.make_node("Gemm", ["h", weight, bias], [f"{name}_out"]),
            ],
            name,
            [],
            [h.make_tensor_value_info(f"{name}_out", T.FLOAT, rows)],
            [nh.from_array(f(WIDTH, WIDTH), weight), nh.from_array(f(WIDTH), bias)],
        )

    body = h.make_graph(
        [
            h.make_node("Identity", ["going"], ["goes_on"]),
            h.make_node("MatMul", ["carried", "loop_weight"], ["m"]),
            h.make_node("Tanh", ["m"], ["carries"]),
        ],
        "body",
        [
            h.make_tensor_value_info("turn", T.INT64, []),
            h.make_tensor_value_info("going", T.BOOL, []),
            h.make_tensor_value_info("carried", T.FLOAT, rows),
        ],
        [
            h.make_tensor_value_info("goes_on", T.BOOL, []),
            h.make_tensor_value_info("carries", T.FLOAT, rows),
        ],
        [nh.from_array(f(WIDTH, WIDTH), "loop_weight")],
    )
    tensors = {
        "embedding": f(300, WIDTH),
        "dense": f(WIDTH, WIDTH),
        "dense_bias": f(WIDTH),
        "integers": generator.integers(-120, 120, (WIDTH, WIDTH)).astype(np.int8),
        "integer_zero": np.zeros((), np.int8),
        "integer_scale": np.float32(0.01),
        "quantised": generator.integers(0, 255, (WIDTH, WIDTH)).astype(np.uint8),
        "x_scale": np.float32(0.02),
        "x_zero": np.uint8(128),
        "w_scale": np.float32(0.02),
        "w_zero": np.uint8(128),
        "turns": np.array(2, np.int64),
        "go": np.array(True),
        "middle": np.array([1], np.int64),
        "lstm_w": f(1, 4 * WIDTH, WIDTH),
        "lstm_r": f(1, 4 * WIDTH, WIDTH),
        "lstm_b": f(1, 8 * WIDTH),
        "channels": np.array([-1, 4, 4, 4], np.int64),
        "kernel": f(8, 4, 3, 3),
        "kernel_bias": f(8),
        "flat": np.array([-1, 128], np.int64),
        "four_bits": generator.integers(0, 255, (WIDTH, 128 // 32, 16)).astype(np.uint8),
        "four_bit_scales": np.abs(f(WIDTH * (128 // 32))),
    }
    nodes = [
        h.make_node("Gather", ["embedding", "ids"], ["x"]),
        h.make_node("Gemm", ["x", "dense", "dense_bias"], ["x1"]),
        h.make_node("DynamicQuantizeLinear", ["x1"], ["q", "qs", "qz"]),
        h.make_node("MatMulInteger", ["q", "integers", "qz", "integer_zero"], ["i"]),
        h.make_node("Cast", ["i"], ["ic"], to=T.FLOAT),
        h.make_node("Mul", ["qs", "integer_scale"], ["s"]),
        h.make_node("Mul", ["ic", "s"], ["x2"]),
        h.make_node("QuantizeLinear", ["x2", "x_scale", "x_zero"], ["xq"]),
        h.make_node(
            "QLinearMatMul",
            ["xq", "x_scale", "x_zero", "quantised", "w_scale", "w_zero", "x_scale", "x_zero"],
            ["yq"],
        ),
        h.make_node("DequantizeLinear", ["yq", "x_scale", "x_zero"], ["h"]),
        h.make_node(
            "If", ["choice"], ["z"],
            then_branch=branch("then", "then_weight", "then_bias"),
            else_branch=branch("else", "else_weight", "else_bias"),
        ),
        h.make_node("Loop", ["turns", "go", "z"], ["l"], body=body),
        h.make_node("Unsqueeze", ["l", "middle"], ["l3"]),
        h.make_node("LSTM", ["l3", "lstm_w", "lstm_r", "lstm_b"], ["ly"], hidden_size=WIDTH),
        h.make_node("Reshape", ["ly", "channels"], ["c0"]),
        h.make_node("Conv", ["c0", "kernel", "kernel_bias"], ["c1"], pads=[1, 1, 1, 1]),
        h.make_node("Reshape", ["c1", "flat"], ["c2"]),
        h.make_node(
            "MatMulNBits", ["c2", "four_bits", "four_bit_scales"], ["y"],
            domain="com.microsoft", K=128, N=WIDTH, bits=4, block_size=32,
        ),
    ]  # fmt: skip
    return model(
        nodes,
        [
            h.make_tensor_value_info("ids", T.INT64, ["n"]),
            h.make_tensor_value_info("choice", T.BOOL, []),
        ],
        [h.make_tensor_value_info("y", T.FLOAT, ["m", WIDTH])],
        tensors,
    )


def saved(made: onnx.ModelProto, folder: Path, *, external: int = 0) -> Path:
    """Save a model, its weights in the graph or in ``external`` files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    if not external:
        onnx.save(made, path)
        return path
    made = onnx.ModelProto.FromString(made.SerializeToString())
    parts = [bytearray() for _ in range(external)]
    for position, tensor in enumerate(made.graph.initializer):
        raw = nh.from_array(nh.to_array(tensor)).raw_data
        if tensor.data_type == T.INT64:
            continue
        part = parts[position % external]
        for field in ("raw_data", "float_data", "int32_data"):
            tensor.ClearField(field)
        tensor.data_location = T.EXTERNAL
        part_name = f"weights-{position % external}.bin"
        for key, value in (("location", part_name), ("offset", len(part)), ("length", len(raw))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        part += raw
    for number, part in enumerate(parts):
        (folder / f"weights-{number}.bin").write_bytes(part)
    path.write_bytes(made.SerializeToString())
    return path
