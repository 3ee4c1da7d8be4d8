"""What options hold that no attribute tells: read off a small session that is made with them.

Free dimension overrides show in the shapes of that session's inputs, and initializers that are put
in the place of a model's in what it answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

from weightguard.checkpoint import Checkpoint
from weightguard.checkpoint.onnx.protobuf import LENGTH, Wire, tag
from weightguard.errors import WeightguardError
from weightguard_integrations.onnxruntime.source import RUNTIME_ERRORS

_GRAPH, _INPUT = tag(7, LENGTH), tag(11, LENGTH)
_MARK = np.array(-1.2345e-30, np.float32)
_OPSET, _IR_VERSION = 17, 8
_FOREIGN = (
    "the session options put other initializers in the place of the model's{}: what is verified "
    "are its files. Write a model that holds them"
)


@dataclass(frozen=True, slots=True)
class Overrides:
    """Free dimensions that are fixed, by the name of a dimension and by its denotation."""

    names: tuple[tuple[str, int], ...] = ()
    denotations: tuple[tuple[str, int], ...] = ()

    def give(self, options: ort.SessionOptions) -> None:
        """Have ``options`` fix the same dimensions."""
        for name, length in self.names:
            options.add_free_dimension_override_by_name(name, length)
        for denotation, length in self.denotations:
            options.add_free_dimension_override_by_denotation(denotation, length)


def overrides_in(options: ort.SessionOptions, checkpoint: Checkpoint) -> Overrides:
    """Return which dimensions of a model's inputs ``options`` fix; they are left as they are.

    Raises WeightguardError where they replace initializers of the model, or hold what no small
    session can be made with.
    """
    names, denotations = _free_dimensions(_inputs(checkpoint))
    weights = sorted({name for t in checkpoint.tensors for name in (t.name, *t.aliases)})
    shapes, answers = _shown(options, _small_model(names, denotations, weights))
    if any(answer.tobytes() != _MARK.tobytes() for answer in answers):
        raise WeightguardError(_FOREIGN.format(""))
    found = [shape[0] for shape in shapes]
    return Overrides(_fixed(names, found[: len(names)]), _fixed(denotations, found[len(names) :]))


def refuse_files(options: ort.SessionOptions, checkpoint: Checkpoint) -> None:
    """Raise WeightguardError where ``options`` hold files of the model; they are used up."""
    names = [file.name for file in checkpoint.files[1:]]
    try:
        options.add_external_initializers_from_files_in_memory(
            names, [b"\0"] * len(names), [1] * len(names)
        )
    except RuntimeError as error:
        raise WeightguardError(_FOREIGN.format(f" ({error!s:.200})")) from error


def _inputs(checkpoint: Checkpoint) -> list[ValueInfoProto]:
    """Return the inputs of the main graph, without reading what else it holds."""
    file = checkpoint.files[0]
    wire = Wire(file)
    graphs = [span for key, *span in wire.fields(((0, file.size),)) if key == _GRAPH]
    found = wire.fields([(start, end) for start, end in graphs])
    try:
        return [
            ValueInfoProto.FromString(wire.copy(start, end))
            for key, start, end in found
            if key == _INPUT
        ]
    except DecodeError as error:
        raise WeightguardError(f"an input of the graph is malformed: {error}") from error


def _free_dimensions(inputs: Sequence[ValueInfoProto]) -> tuple[list[str], list[str]]:
    """Return names and denotations of the dimensions that have no length."""
    free = [
        dimension
        for value in inputs
        for dimension in value.type.tensor_type.shape.dim
        if not dimension.HasField("dim_value")
    ]
    names = sorted({dimension.dim_param for dimension in free if dimension.dim_param})
    return names, sorted({dimension.denotation for dimension in free if dimension.denotation})


def _small_model(
    names: Sequence[str], denotations: Sequence[str], weights: Sequence[str]
) -> onnx.ModelProto:
    """Return a model with an input for each dimension, and an output for each initializer."""
    prefix = "weightguard " + max((*weights, *names), key=len, default="")
    inputs = [
        helper.make_tensor_value_info(f"{prefix} {i}", TensorProto.FLOAT, [name])
        for i, name in enumerate((*names, *(f"{prefix} free {d}" for d in denotations)))
    ]
    for value, denotation in zip(inputs[len(names) :], denotations, strict=True):
        value.type.tensor_type.shape.dim[0].denotation = denotation
    mark = onnx.numpy_helper.from_array(_MARK)
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*weights, prefix)
    ]
    stored = [onnx.TensorProto.FromString(mark.SerializeToString()) for _ in outputs]
    for tensor, output in zip(stored, outputs, strict=True):
        tensor.name = output.name
    node = helper.make_node("Identity", [prefix], [f"{prefix} same"])
    outputs.append(helper.make_tensor_value_info(f"{prefix} same", TensorProto.FLOAT, None))
    graph = helper.make_graph([node], "options", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _shown(
    options: ort.SessionOptions, model: onnx.ModelProto
) -> tuple[list[list[int | str]], list[NDArray[np.float32]]]:
    """Return the shapes of the inputs of a session, and what it answers."""
    profiled, options.enable_profiling = options.enable_profiling, False
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"],
            enable_fallback=0,
        )  # fmt: skip
        inputs = session.get_inputs()
        lengths = [n if isinstance(n, int) else 1 for node in inputs for n in node.shape]
        feed = {
            node.name: np.zeros(length, np.float32)
            for node, length in zip(inputs, lengths, strict=True)
        }
        return [node.shape for node in inputs], session.run(None, feed)
    except (RuntimeError, *RUNTIME_ERRORS) as error:
        raise WeightguardError(
            f"the session options hold what a guarded session cannot take over: {error!s:.300}"
        ) from error
    finally:
        options.enable_profiling = profiled


def _fixed(names: Sequence[str], lengths: Sequence[int | str]) -> tuple[tuple[str, int], ...]:
    return tuple((n, at) for n, at in zip(names, lengths, strict=True) if isinstance(at, int))
