"""The pickle machine: Python's own pickler as the oracle, and proof that nothing is run."""

from __future__ import annotations

import builtins
import importlib
import io
import os
import pickle
import sys
import time
import tracemalloc
from collections import OrderedDict
from typing import Any

import pytest

from tests.torch_archives import (
    PROTO,
    STOP,
    call,
    name,
    numbers,
    pickled,
    storage,
    table,
    tensor,
    text,
    tuple_of,
)
from weightguard.checkpoint.torch_zip import pickle_machine
from weightguard.checkpoint.torch_zip.builders import (
    ALLOWED,
    BUILDERS,
    Items,
    Storage,
    Symbol,
    Tensor,
)
from weightguard.checkpoint.torch_zip.pickle_machine import read_pickle
from weightguard.errors import CheckpointError
from weightguard.finding import Finding

PLAIN = {
    "none": None,
    "bool": [True, False],
    "int": [0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**63, -(2**100)],
    "float": [0.0, -0.0, 1.5, float("inf"), 1e-300],
    "text": ["", "a", "x" * 300, "naïve 重み \N{SNOWMAN}", "\x1b[31m"],
    "tuple": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((),)],
    "dict": {"a": {"b": [1, {"c": 2}]}, 3: 4, True: 5, 2.5: 6, None: 7},
    "ordered": OrderedDict(a=1, b=OrderedDict(c=2)),
    "many": {f"key.{n}": [n] for n in range(3000)},
}


def plain(value: Any) -> Any:
    """Return what the machine read as Python's own containers."""
    if isinstance(value, Items):
        return {plain(key): plain(item) for key, item in value.pairs}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return tuple(plain(item) for item in value) if isinstance(value, tuple) else value


def refusal(data: bytes, offset: int = 0) -> Finding:
    with pytest.raises(CheckpointError) as caught:
        read_pickle(data, file="m.pt", offset=offset)
    return caught.value.finding


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("label", PLAIN)
def test_plain_values_of_every_protocol(label: str, protocol: int) -> None:
    data = pickle.dumps(PLAIN[label], protocol)
    result = plain(read_pickle(data, file="m.pt", offset=0))
    assert result == PLAIN[label]
    assert repr(result) == repr(plain(PLAIN[label])) or isinstance(PLAIN[label], OrderedDict)


@pytest.mark.parametrize("protocol", [2, 4])
def test_recalled_values_are_one_object(protocol: int) -> None:
    shared = ["x"]
    result = read_pickle(pickle.dumps([shared, shared], protocol), file="m.pt", offset=0)
    assert result[0] is result[1]


def test_the_python_pickler_without_its_optimisations() -> None:
    value = {"a": [1, 2], "b": "x" * 5000}
    assert plain(read_pickle(pickle._dumps(value, 2), file="m.pt", offset=0)) == value


def test_a_tensor_is_a_description() -> None:
    result = read_pickle(pickled(tensor(storage("7", 12), 2, (2, 3), (3, 1))), file="m", offset=0)
    assert isinstance(result, Tensor)
    assert result.storage == Storage("7", "F32", 12)
    assert (result.dtype, result.offset, result.shape, result.strides) == ("F32", 2, (2, 3), (3, 1))


def test_repeated_keys_are_kept_for_whoever_reads() -> None:
    pairs = b"}(" + (text("w") + tensor()) * 2 + b"u"
    result = read_pickle(pickled(pairs), file="m.pt", offset=0)
    assert [key for key, _ in result.pairs] == ["w", "w"]


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


class Stateful:
    def __init__(self) -> None:
        self.weight = 1


HOSTILE = {
    "reduce": Hostile(),
    "instance": Stateful(),
    "builtin": eval,
    "class": io.BytesIO,
    "partial": OrderedDict(a=Hostile()),
    "exception": ValueError("x"),
    "range": range(3),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("label", HOSTILE)
def test_anything_else_is_refused_by_name(label: str, protocol: int) -> None:
    found = refusal(pickle.dumps(HOSTILE[label], protocol))
    assert found.rule == "WG112"
    assert "asks for" in found.message


def test_nothing_is_imported_called_or_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object, **keywords: object) -> None:
        raise AssertionError("the machine reached out")

    data = [
        pickled(call("os.system", text("x"))),
        pickled(call("antigravity.fly")),
        PROTO + b"(" + text("x") + b"ios\nsystem\n" + STOP,
        pickled(table(w=tensor(), x=call("builtins.exec", text("x")))),
    ]
    before = set(sys.modules)
    found = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "system", forbidden)
        patch.setattr(importlib, "import_module", forbidden)
        patch.setattr(builtins, "__import__", forbidden)
        for item in data:
            try:
                read_pickle(item, file="m.pt", offset=0)
            except CheckpointError as error:
                found.append(error.finding.rule)
    assert found == ["WG112"] * len(data)
    assert set(sys.modules) == before


def test_all_refused_names_and_the_place_of_the_first() -> None:
    first = tensor()
    data = PROTO + b"(" + first + name("os.system") + name("nt.system") + b"t" + STOP
    found = refusal(data, offset=1000)
    assert "'os.system', 'nt.system'" in found.message
    assert found.location.offset == 1000 + 3 + len(first)


def test_a_refusal_outweighs_what_is_malformed_after_it() -> None:
    assert refusal(PROTO + name("os.system") + b"\x85\x85\x85").rule == "WG112"


def test_many_names_are_counted_not_shown() -> None:
    names = b"".join(name(f"evil.function{n}") for n in range(5000))
    found = refusal(PROTO + b"(" + names + b"t" + STOP)
    assert found.rule == "WG112"
    assert len(found.message) < 1500
    assert "more" in found.message


@pytest.mark.parametrize("allowed", sorted(ALLOWED - BUILDERS.keys()))
def test_only_builders_can_be_called(allowed: str) -> None:
    assert isinstance(read_pickle(pickled(name(allowed)), file="m", offset=0), Symbol)
    assert refusal(pickled(call(allowed))).rule == "WG112"


@pytest.mark.parametrize("builder", sorted(BUILDERS))
@pytest.mark.parametrize(
    "arguments",
    [b")", tuple_of(*[b"N"] * 3), tuple_of(*[b"N"] * 7), tuple_of(b"]"), tuple_of(*[b"}"] * 40)],
)
def test_builders_refuse_or_ignore_strange_arguments(builder: str, arguments: bytes) -> None:
    try:
        read_pickle(pickled(name(builder) + arguments + b"R"), file="m.pt", offset=0)
    except CheckpointError as error:
        assert error.finding.rule in ("WG103", "WG112")  # noqa: PT017


@pytest.mark.parametrize("builder", ["torch.Size", "collections.OrderedDict", "torch.device"])
def test_recalled_arguments_are_not_copied(builder: str) -> None:
    # slot 0 remembers a tuple of a hundred thousand values, which every call is given
    calls = (name(builder) + b"h\x00R") * 20_000
    data = PROTO + b"((" + b"N" * 100_000 + b"tq\x00" + calls + b"t"
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(CheckpointError):
        read_pickle(data + STOP, file="m.pt", offset=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - started < 5
    assert peak < 32 << 20


LIMITS = {
    "MAX_OPCODES": PROTO + b"(" + b"N" * 200 + b"t" + STOP,
    "MAX_OBJECTS": PROTO + b"(" + b"]" * 200 + b"t" + STOP,
    "MAX_MARKS": PROTO + b"(" * 200 + b"t" * 200 + STOP,
    "MAX_PICKLE_BYTES": PROTO + text("x" * 200) + STOP,
}


@pytest.mark.parametrize("limit", LIMITS)
def test_each_limit_is_one_finding(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    data = LIMITS[limit]
    read_pickle(data, file="m.pt", offset=0)
    monkeypatch.setattr(pickle_machine, limit, 100)
    assert refusal(data).rule == "WG116"


def test_sizes_are_exact_integers() -> None:
    huge = tuple_of(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), b"\x88")
    assert refusal(pickled(huge + b"Q")).rule == "WG103"
    sizes = call("torch.Size", numbers(2, 3))
    assert read_pickle(pickled(sizes), file="m.pt", offset=0) == (2, 3)
