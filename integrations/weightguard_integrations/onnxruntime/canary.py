"""The canary: fixed inputs whose outputs are known, bit by bit.

Made from the model's own signature where the caller gives none: types, symbolic dimensions, and
for integers the range that is valid where the graph uses them as indices. Two runs, whose Boolean
inputs are opposites, so that a branch on one of them is taken both ways.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
import onnx
from blake3 import blake3
from numpy.typing import NDArray

from weightguard.errors import WeightguardError
from weightguard_integrations.onnxruntime.graphs import nodes

Feed: TypeAlias = dict[str, NDArray[Any]]
Outputs: TypeAlias = Sequence[Any]

RUNS = 2
SEED = 20240101

DIMENSIONS = ((2, 8), (1, 8), (1, 1), (1, 64), (8, 8))
"""Lengths tried for symbolic dimensions: the first axis of an input, and the others."""

_INDEXED = {"Gather": (0, 1), "GatherElements": (0, 1)}
_PASSING = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten"})
_FLOATS = {"float": np.float32, "double": np.float64, "float16": np.float16}
_INTEGERS = {
    "int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16,
    "int32": np.int32, "uint32": np.uint32, "int64": np.int64, "uint64": np.uint64,
}  # fmt: skip
_FLAG_VALUES = 2


class Signature(Protocol):
    """The part of onnxruntime's NodeArg that describes an input."""

    name: str
    type: str
    shape: Sequence[int | str | None]


def candidates(inputs: Sequence[Signature], model: onnx.ModelProto) -> Iterator[tuple[Feed, ...]]:
    """Yield feeds that may suit a model, likeliest first.

    Raises WeightguardError for an input of a type that no value can be made up for.
    """
    limits = index_limits(model)
    for lengths in DIMENSIONS:
        generator = np.random.default_rng(SEED)
        yield tuple(_feed(inputs, lengths, limits, generator, run) for run in range(RUNS))


def _feed(
    inputs: Sequence[Signature],
    lengths: tuple[int, int],
    limits: Mapping[str, int],
    generator: np.random.Generator,
    run: int,
) -> Feed:
    symbols: dict[str, int] = {}
    feed = {}
    for signature in inputs:
        shape = [
            length
            if isinstance(length, int) and length > 0
            else symbols.setdefault(str(length), lengths[axis > 0])
            if isinstance(length, str)
            else lengths[axis > 0]
            for axis, length in enumerate(signature.shape)
        ]
        feed[signature.name] = _values(signature, shape, limits, generator, run)
    return feed


def _values(
    signature: Signature,
    shape: Sequence[int],
    limits: Mapping[str, int],
    generator: np.random.Generator,
    run: int,
) -> NDArray[Any]:
    kind = signature.type.removeprefix("tensor(").removesuffix(")")
    if kind in _FLOATS:
        return np.asarray(generator.standard_normal(shape)).astype(_FLOATS[kind])
    if kind in _INTEGERS:
        dtype = np.dtype(_INTEGERS[kind])
        high = min(limits.get(signature.name, _FLAG_VALUES), 1 << 8 * dtype.itemsize - 1)
        return np.asarray(generator.integers(0, high, shape)).astype(dtype)
    if kind == "bool":
        return np.full(shape, run % 2 == 0)
    raise WeightguardError(
        f"no canary can be made up for the input {signature.name!r:.200} of type "
        f"{signature.type!r:.200}: give one as canary={{name: array}}"
    )


def index_limits(model: onnx.ModelProto) -> dict[str, int]:
    """Return for each input that selects rows of weights how many rows there are, at least."""
    lengths = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    origin = {value.name: value.name for value in model.graph.input}
    limits: dict[str, int] = {}
    for node in nodes(model.graph):
        if node.op_type in _PASSING and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        if node.op_type not in _INDEXED:
            continue
        data, indices = (node.input[position] for position in _INDEXED[node.op_type])
        if data in lengths and indices in origin:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            name = origin[indices]
            rows = lengths[data][axis] if lengths[data] else 1
            limits[name] = min(limits.get(name, rows), rows)
    return limits


def given(canary: Feed | Sequence[Feed]) -> tuple[Feed, ...]:
    """Return the caller's feeds, as arrays of their own."""
    feeds = [canary] if isinstance(canary, Mapping) else list(canary)
    if not feeds:
        raise WeightguardError("an empty canary proves nothing: give at least one input")
    if not all(isinstance(feed, Mapping) for feed in feeds):
        raise WeightguardError("a canary is {name: array}, or a list of such")
    return tuple({name: np.array(value) for name, value in feed.items()} for feed in feeds)


def chosen(
    run: Callable[[Feed], Outputs], inputs: Sequence[Signature], model: onnx.ModelProto
) -> tuple[Feed, ...]:
    """Return the first candidate feeds that the model runs on.

    Raises WeightguardError where it fails on all of them.
    """
    failure: Exception | None = None
    for feeds in candidates(inputs, model):
        try:
            for feed in feeds:
                run(feed)
        except Exception as error:  # noqa: BLE001 - whatever a kernel raises, the next may suit
            failure = error
        else:
            return feeds
    raise WeightguardError(
        "the model runs on none of the inputs made up from its signature: give one that it takes "
        f"as canary={{name: array}}. The last failure: {failure!s:.300}"
    )


def stable(run: Callable[[Feed], Outputs], feeds: Sequence[Feed]) -> tuple[str, ...]:
    """Return a digest of the outputs for each feed.

    Raises WeightguardError where they vary, and where the model does not run on a feed.
    """
    try:
        outputs = recorded(run, feeds)
    except Exception as error:
        raise WeightguardError(
            f"the model does not run on the canary that was given: {error!s:.300}"
        ) from error
    if recorded(run, feeds) != outputs:
        raise WeightguardError(
            "the model answers the same inputs differently each time, so nothing can be proved by "
            "its answers: fix its seeds, or give canary= inputs whose outputs are stable"
        )
    return outputs


def recorded(run: Callable[[Feed], Outputs], feeds: Sequence[Feed]) -> tuple[str, ...]:
    """Return a digest of the outputs for each feed."""
    return tuple(digest(run(feed)) for feed in feeds)


def digest(outputs: Outputs) -> str:
    """Return BLAKE3 over types, shapes and bits of outputs, lists and maps included, in hex."""
    hasher = blake3()
    for piece in itertools.chain.from_iterable(_pieces(output) for output in outputs):
        hasher.update(len(piece).to_bytes(8, "little"))
        hasher.update(piece)
    return hasher.hexdigest()


def _pieces(output: Any) -> Iterator[bytes]:
    if isinstance(output, np.ndarray) and output.dtype != object:
        yield f"{output.dtype.str}{output.shape}".encode()
        yield np.ascontiguousarray(output).tobytes()
    elif isinstance(output, (list, tuple, np.ndarray)):
        yield f"list {len(output)}".encode()
        for item in np.ravel(output) if isinstance(output, np.ndarray) else output:
            yield from _pieces(item)
    elif isinstance(output, Mapping):
        yield f"map {len(output)}".encode()
        for key in sorted(output, key=repr):
            yield repr(key).encode()
            yield from _pieces(output[key])
    else:
        yield repr(output).encode()


def encoded(feeds: Sequence[Feed]) -> bytes:
    """Return feeds as the bytes of a file."""
    file = io.BytesIO()
    names = [list(feed) for feed in feeds]
    arrays = {f"{i}.{j}": a for i, feed in enumerate(feeds) for j, a in enumerate(feed.values())}
    arrays["names"] = np.array(msgspec.json.encode(names).decode())
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def decoded(data: bytes) -> tuple[Feed, ...]:
    """Return the feeds of such a file; nothing in it is unpickled."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        names = msgspec.json.decode(str(arrays["names"]), type=list[list[str]])
        return tuple(
            {name: arrays[f"{i}.{j}"] for j, name in enumerate(run)} for i, run in enumerate(names)
        )


def identity(feeds: Sequence[Feed] | None) -> str:
    """Return what a key says of the caller's canary."""
    if feeds is None:
        return "own"
    hasher = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            hasher.update(f"{name}\0{digest([feed[name]])}\0".encode())
        hasher.update(b"\n")
    return hasher.hexdigest()
