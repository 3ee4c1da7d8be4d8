"""Malformed and hostile ONNX files: each gives exactly the finding that the table says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.files import Folder
from weightguard.checkpoint.onnx import parse_onnx
from weightguard.checkpoint.onnx.protobuf import encoded
from weightguard.errors import CheckpointError

VALUES = np.arange(4, dtype="<f4").tobytes()


def length(number: int, payload: bytes) -> bytes:
    return encoded(number << 3 | 2) + encoded(len(payload)) + payload


def varint(number: int, value: int) -> bytes:
    return encoded(number << 3) + encoded(value)


def tensor(name: str = "w", dims: tuple[int, ...] = (4,), **fields: Any) -> TensorProto:
    settings: dict[str, Any] = {"data_type": TensorProto.FLOAT, "raw_data": VALUES, **fields}
    settings = {key: value for key, value in settings.items() if value is not None}
    return TensorProto(name=name, dims=dims, **settings)


def model(*tensors: TensorProto, nodes: tuple[NodeProto, ...] = (), **parts: Any) -> bytes:
    graph = GraphProto(name="g", initializer=tensors, node=nodes)
    for key, value in parts.items():
        getattr(graph, key).extend(value)
    proto = ModelProto(ir_version=8, graph=graph)
    proto.opset_import.add(domain="", version=17)
    return bytes(proto.SerializeToString())


def wire_model(graph: bytes) -> bytes:
    return varint(1, 8) + length(7, graph) + length(8, varint(2, 17))


def wire_tensor(fields: bytes) -> bytes:
    return wire_model(length(5, length(8, b"w") + fields))


def external(name: str = "w", dims: tuple[int, ...] = (4,), **keys: str | None) -> TensorProto:
    proto = tensor(name, dims, raw_data=None, data_location=1)
    for key, value in {"location": "w.bin", **keys}.items():
        if value is not None:
            proto.external_data.add(key=key, value=value)
    return proto


def nested(depth: int) -> bytes:
    graph = GraphProto(name="leaf", initializer=[tensor()]).SerializeToString()
    for _ in range(depth):
        attribute = length(1, b"body") + length(6, graph)
        graph = length(1, length(4, b"Loop") + length(5, attribute))
    return wire_model(graph)


def sparse(values: TensorProto, indices: TensorProto, dims: list[int]) -> bytes:
    proto = helper.make_sparse_tensor(values, indices, dims)
    return model(sparse_initializer=[proto])


INDICES: dict[str, Any] = {"data_type": TensorProto.INT64, "raw_data": None}


@dataclass(frozen=True)
class Case:
    id: str
    data: bytes
    rule: str
    fatal: bool = True
    prepare: Callable[[Path], object] | None = None


def symlink_inside(folder: Path) -> None:
    (folder / "real.bin").write_bytes(VALUES)
    (folder / "w.bin").symlink_to("real.bin")


def symlinked_folder(folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "real" / "w.bin").write_bytes(VALUES)
    (folder / "sub").symlink_to("real")


def symlink_outside(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(VALUES)
    (folder / "w.bin").symlink_to("../secret")


def hard_link(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(VALUES)
    (folder / "w.bin").hardlink_to(folder.parent / "secret")


def weights(size: int = 16) -> Callable[[Path], object]:
    return lambda folder: (folder / "w.bin").write_bytes(bytes(size))


GOOD = model(tensor())

CASES = [
    Case("empty", b"", "WG101"),
    Case("html", b"<html>" * 50, "WG101"),
    Case("zeros", bytes(500), "WG101"),
    Case("no-graph", GOOD[:2], "WG101"),
    Case("no-ir-version", GOOD[2:], "WG101"),
    Case("empty-graph", wire_model(b""), "WG101"),
    Case("unknown-top-level-field", varint(1, 8) + varint(30, 1) + GOOD[2:], "WG101"),
    Case("cut-in-graph", GOOD[:20], "WG102"),
    Case("cut-in-last-field", GOOD[:-1], "WG102"),
    Case("cut-before-opset", GOOD[: GOOD.rindex(b"\x42")], "WG103"),
    Case("trailing-garbage", GOOD + b"\x00" * 8, "WG103"),
    Case("trailing-long-length", GOOD + b"\x7a" + encoded((1 << 64) - 1), "WG102"),
    Case("group", wire_model(length(2, b"g") + b"\x0b\x0c"), "WG103"),
    Case("wire-type-7", wire_model(length(2, b"g") + b"\x0f"), "WG103"),
    Case("field-number-zero", wire_model(length(2, b"g") + b"\x02\x00"), "WG103"),
    Case("field-number-too-large", wire_model(length(2, b"g") + encoded(1 << 33) + b"0"), "WG103"),
    Case("varint-of-eleven-bytes", wire_tensor(b"\x08" + b"\x80" * 10 + b"\x01"), "WG103"),
    Case("varint-of-65-bits", wire_tensor(b"\x08" + b"\xff" * 9 + b"\x02"), "WG103"),
    Case("varint-cut-by-message", wire_tensor(b"\x08\x80"), "WG103"),
    Case("raw-longer-than-tensor", wire_tensor(b"\x4a\x20" + bytes(8)), "WG103"),
    Case("raw-of-2-63-bytes", wire_tensor(b"\x4a" + encoded(1 << 63)), "WG103"),
    Case("duplicate-initializer", model(tensor(), tensor()), "WG104"),
    Case(
        "duplicate-of-sparse-initializer",
        model(
            tensor(),
            sparse_initializer=[
                helper.make_sparse_tensor(tensor(), tensor("i", int64_data=[0] * 4, **INDICES), [9])
            ],
        ),
        "WG104",
    ),
    Case("raw-too-short", model(tensor(dims=(5,))), "WG107"),
    Case("raw-too-long", model(tensor(dims=(3,))), "WG107"),
    Case("no-data", model(tensor(raw_data=None)), "WG107"),
    Case("raw-and-typed", model(tensor(float_data=[1, 2, 3, 4])), "WG107"),
    Case("wrong-typed-field", model(tensor(raw_data=None, int64_data=[1, 2, 3, 4])), "WG107"),
    Case("too-few-floats", model(tensor(raw_data=None, float_data=[1, 2, 3])), "WG107"),
    Case(
        "too-many-integers",
        model(tensor(data_type=7, raw_data=None, int64_data=[1] * 5)),
        "WG107",
    ),
    Case("strings-in-a-float-tensor", model(tensor(string_data=[b"x"])), "WG107"),
    Case("negative-dimension", model(tensor(dims=(-4,))), "WG107"),
    Case("wrapping-dimensions", model(tensor(dims=(2**32, 2**32))), "WG107"),
    Case("huge-dimensions-times-zero", model(tensor(dims=(0, 2**62, 2**62))), "WG107"),
    Case("65-dimensions", model(tensor(dims=(1,) * 65)), "WG107"),
    Case("packed-dimensions-without-end", wire_tensor(length(1, b"\x04" * 9000)), "WG116"),
    Case("unknown-type", model(tensor(data_type=99)), "WG108"),
    Case("type-above-32-bits", wire_tensor(varint(2, (1 << 32) + 1) + varint(1, 0)), "WG108"),
    Case(
        "int8-out-of-range",
        model(tensor(data_type=3, raw_data=None, int32_data=[128] * 4)),
        "WG103",
    ),
    Case("uint8-negative", model(tensor(data_type=2, raw_data=None, int32_data=[-1] * 4)), "WG103"),
    Case("bool-of-two", model(tensor(data_type=9, raw_data=None, int32_data=[2] * 4)), "WG103"),
    Case(
        "fp16-code-of-17-bits",
        model(tensor(data_type=10, raw_data=None, int32_data=[65536] * 4)),
        "WG103",
    ),
    Case(
        "fp6-code-of-7-bits",
        model(tensor(data_type=27, raw_data=None, int32_data=[64] * 4)),
        "WG103",
    ),
    Case(
        "floats-of-odd-length",
        wire_tensor(varint(1, 4) + varint(2, 1) + length(4, bytes(15))),
        "WG107",
    ),
    Case(
        "integers-without-end",
        wire_tensor(varint(1, 1) + varint(2, 7) + length(7, b"\x80")),
        "WG103",
    ),
    Case(
        "integer-of-70-bits",
        wire_tensor(varint(1, 1) + varint(2, 7) + length(7, b"\xff" * 9 + b"\x7f")),
        "WG103",
    ),
    Case(
        "integer-of-11-bytes",
        wire_tensor(varint(1, 1) + varint(2, 7) + length(7, b"\x80" * 10 + b"\x00")),
        "WG103",
    ),
    Case("unknown-location", wire_tensor(varint(14, 2)), "WG103"),
    Case("name-not-utf-8", wire_model(length(5, length(8, b"\xff"))), "WG103"),
    Case("name-of-3-mib", wire_model(length(5, length(8, b"x" * (3 << 20)))), "WG116"),
    Case("graphs-nested-40-deep", nested(40), "WG116"),
    Case(
        "strings",
        model(tensor(), tensor("s", (1,), data_type=8, raw_data=None, string_data=[b"x"])),
        "WG119",
        fatal=False,
    ),
    Case("undefined-type", model(tensor(), tensor("u", data_type=0)), "WG119", fatal=False),
    Case(
        "segment", model(tensor(segment=TensorProto.Segment(begin=0, end=4))), "WG119", fatal=False
    ),
    Case("sparse-without-indices", wire_model(length(15, length(1, b""))), "WG107"),
    Case("sparse-float-indices", sparse(tensor(), tensor("i"), [9]), "WG107"),
    Case(
        "sparse-index-count",
        sparse(tensor(), tensor("i", (3,), int64_data=[0, 1, 2], **INDICES), [9]),
        "WG107",
    ),
    Case(
        "sparse-negative-dims",
        sparse(tensor(), tensor("i", int64_data=[0, 1, 2, 3], **INDICES), [-9]),
        "WG107",
    ),
    Case("external-missing", model(external()), "WG122"),
    Case("external-cut", model(external()), "WG102", prepare=weights(15)),
    Case("external-without-location", model(external(location=None)), "WG103"),
    Case("external-empty-location", model(external(location="")), "WG103"),
    Case("external-parent", model(external(location="../w.bin")), "WG110"),
    Case("external-hidden-parent", model(external(location="a/../../w.bin")), "WG110"),
    Case("external-absolute", model(external(location="/etc/passwd")), "WG110"),
    Case("external-backslash", model(external(location="..\\w.bin")), "WG110"),
    Case("external-control-characters", model(external(location="w\x1b[31m.bin")), "WG122"),
    Case("external-newline", model(external(location="w\n::error::x")), "WG122"),
    Case("external-long-location", model(external(location="w" * 5000)), "WG115"),
    Case(
        "external-folder",
        model(external(location="d")),
        "WG111",
        prepare=lambda f: (f / "d").mkdir(),
    ),
    Case("external-fifo", model(external()), "WG111", prepare=lambda f: os.mkfifo(f / "w.bin")),
    Case("external-symlink-outside", model(external()), "WG110", prepare=symlink_outside),
    Case("external-symlink-inside", model(external()), "WG110", prepare=symlink_inside),
    Case(
        "external-linked-folder",
        model(external(location="sub/w.bin")),
        "WG110",
        prepare=symlinked_folder,
    ),
    Case("external-hard-link", model(external()), "WG110", prepare=hard_link),
    Case("external-model-itself", model(external(location="model.onnx")), "WG105"),
    Case("external-negative-offset", model(external(offset="-4")), "WG106", prepare=weights()),
    Case("external-hexadecimal-offset", model(external(offset="0x0")), "WG106", prepare=weights()),
    Case("external-spaced-offset", model(external(offset=" 0")), "WG106", prepare=weights()),
    Case("external-offset-of-2^64", model(external(offset=str(2**64))), "WG106", prepare=weights()),
    Case("external-leading-zeros", model(external(offset="00")), "WG106", prepare=weights()),
    Case("external-foreign-digits", model(external(offset="\u0660")), "WG106", prepare=weights()),
    Case("external-huge-offset", model(external(offset="9" * 400)), "WG106", prepare=weights()),
    Case("external-offset-past-end", model(external(offset="17")), "WG106", prepare=weights()),
    Case(
        "external-wrapping-offset",
        model(external(offset=str(2**63 - 1))),
        "WG106",
        prepare=weights(),
    ),
    Case("external-offset-near-end", model(external(offset="8")), "WG102", prepare=weights()),
    Case("external-empty-length", model(external(length="")), "WG106", prepare=weights()),
    Case("external-wrong-length", model(external(length="12")), "WG107", prepare=weights()),
    Case("external-and-raw", model(tensor(data_location=1)), "WG107", prepare=weights()),
    Case(
        "external-location-twice",
        wire_tensor(
            varint(1, 4)
            + varint(2, 1)
            + varint(14, 1)
            + length(13, length(1, b"location") + length(2, b"w.bin")) * 2
        ),
        "WG103",
        prepare=weights(),
    ),
    Case(
        "external-overlap",
        model(external("a"), external("b", offset="4")),
        "WG105",
        fatal=False,
        prepare=weights(20),
    ),
    Case(
        "external-same-range-other-shape",
        model(external("a"), external("b", (2, 2))),
        "WG105",
        fatal=False,
        prepare=weights(),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_each_violation_is_one_finding(tmp_path: Path, case: Case) -> None:
    root = tmp_path / "checkpoint"
    root.mkdir()
    (root / "model.onnx").write_bytes(case.data)
    if case.prepare is not None:
        case.prepare(root)
    folder = Folder(root)
    file = folder.open("model.onnx")
    started = time.process_time()
    if case.fatal:
        with pytest.raises(CheckpointError) as caught:
            parse_onnx(file, folder)
        found = caught.value.finding
    else:
        (found,) = parse_onnx(file, folder).findings
    folder.close()
    assert time.process_time() - started < 60
    assert found.rule == case.rule
    assert found.location.file
    assert found.location.offset is not None or case.rule in ("WG102", "WG110", "WG111", "WG122")
    assert found.remedy
    assert found.message.isprintable()
    assert len(found.message) < 500


def test_case_names_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        ("-4", "negative"),
        (str(2**64), "too large"),
        ("-" + "9" * 30, "negative"),
        ("00", "leading zeros"),
        ("-", "no decimal number"),
        ("\u0660", "no decimal number"),
    ],
)
def test_a_wrong_external_offset_is_described(tmp_path: Path, offset: str, words: str) -> None:
    weights()(tmp_path)
    (tmp_path / "model.onnx").write_bytes(model(external(offset=offset)))
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path / "model.onnx")


def test_a_missing_data_file_names_its_tensor(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model(external("layer.weight")))
    with pytest.raises(CheckpointError, match=r"layer\.weight") as caught:
        open_checkpoint(tmp_path / "model.onnx")
    found = caught.value.finding
    assert (found.rule, found.location.tensor, found.location.file) == (
        "WG122",
        "layer.weight",
        "w.bin",
    )
