"""The safetensors reader against the format's own library, and its limits."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints import Tensors, safetensors_bytes, write_safetensors
from weightguard.checkpoint.container import ParsedFile
from weightguard.checkpoint.files import Folder
from weightguard.checkpoint.safetensors import parse_safetensors
from weightguard.errors import CheckpointError
from weightguard.tensor import DTYPES

# bits an element, from the format's README and the library's source, not from our table
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8,
    "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64,
}  # fmt: skip


def parse(path: Path) -> ParsedFile:
    return parse_safetensors(Folder(path.parent).open(path.name))


def parse_bytes(folder: Path, data: bytes) -> ParsedFile:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    return parse(path)


def with_header(text: str, data: bytes = b"") -> bytes:
    encoded = text.encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + data


def seen(parsed: ParsedFile) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {t.name: (t.dtype.name, t.shape, bytes(t.read())) for t in parsed.tensors}


def seen_by_library(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    }


@st.composite
def tensor_data(draw: st.DrawFn) -> tuple[str, tuple[int, ...], bytes]:
    dtype = draw(st.sampled_from(sorted(BITS)))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    if math.prod(shape) * BITS[dtype] % 8:
        shape = [*shape, 4]
    size = math.prod(shape) * BITS[dtype] // 8
    return dtype, tuple(shape), draw(st.binary(min_size=size, max_size=size))


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(tensors=st.dictionaries(names, tensor_data(), max_size=6))
def test_generated_files_read_as_the_library_reads_them(tmp_path: Path, tensors: Tensors) -> None:
    data = safetensors_bytes(tensors)
    parsed = parse_bytes(tmp_path, data)
    assert seen(parsed) == seen_by_library(data) == dict(tensors)
    assert parsed.findings == ()
    assert [t.offset for t in parsed.tensors] == sorted(t.offset or 0 for t in parsed.tensors)


@pytest.mark.parametrize("dtype", BITS)
def test_every_dtype_of_the_format(tmp_path: Path, dtype: str) -> None:
    data = bytes(range(16 * BITS[dtype] // 8))
    written = safetensors_bytes({"w": (dtype, (2, 8), data)})
    assert seen(parse_bytes(tmp_path, written)) == seen_by_library(written)
    assert parse_bytes(tmp_path, written).findings == ()


def test_dtypes_of_other_formats_are_refused(tmp_path: Path) -> None:
    for dtype in DTYPES.keys() - BITS.keys():
        size = DTYPES[dtype].nbytes(256 * 3)
        with pytest.raises(CheckpointError) as caught:
            parse_bytes(tmp_path, safetensors_bytes({"w": (dtype, (256, 3), bytes(size))}))
        assert caught.value.finding.rule == "WG108"


def test_metadata_is_returned(tmp_path: Path) -> None:
    data = with_header('{"__metadata__":{"format":"pt","b":"\\u00e4\\ud83d\\ude00"}}')
    parsed = parse_bytes(tmp_path, data)
    assert parsed.metadata == {"format": "pt", "b": "ä😀"}
    assert parsed.findings == ()


def test_a_file_without_tensors(tmp_path: Path) -> None:
    assert parse_bytes(tmp_path, with_header("{}")) == ParsedFile((), {}, ())


ENTRY: dict[str, Any] = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}


def entry(**changes: Any) -> dict[str, Any]:
    return {**ENTRY, **changes}


ACCEPTED_BY_THE_LIBRARY = {
    "duplicate-name": (
        '{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
        '"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}}',
        "WG104",
    ),
    "unknown-key": (json.dumps({"a": entry(stride=[1])}), "WG103"),
    "no-metadata": (json.dumps({"__metadata__": None, "a": ENTRY}), "WG103"),
}


@pytest.mark.parametrize("case", ACCEPTED_BY_THE_LIBRARY)
def test_what_the_library_accepts_and_we_report(tmp_path: Path, case: str) -> None:
    text, rule = ACCEPTED_BY_THE_LIBRARY[case]
    data = with_header(text, bytes(8))
    assert seen_by_library(data).keys() == {"a"}
    parsed = parse_bytes(tmp_path, data)
    assert [t.name for t in parsed.tensors] == ["a"]
    assert rule in {f.rule for f in parsed.findings}


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=st.lists(st.integers(-1, 9), max_size=3),
    begin=st.integers(0, 9),
    end=st.integers(0, 9),
    dtype=st.sampled_from(sorted(BITS)),
)
def test_what_we_pass_without_finding_the_library_loads(
    tmp_path: Path, shape: list[int], begin: int, end: int, dtype: str
) -> None:
    header = {"w": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}
    data = with_header(json.dumps(header), bytes(8))
    try:
        parsed = parse_bytes(tmp_path, data)
    except CheckpointError:
        return
    if not parsed.findings:
        assert seen(parsed) == seen_by_library(data)


def test_the_first_of_duplicates_is_kept(tmp_path: Path) -> None:
    text = ",".join(
        f'"a":{json.dumps(entry(dtype=dtype, data_offsets=[begin, begin + 8]))}'
        for begin, dtype in ((0, "U8"), (8, "I8"), (16, "BOOL"))
    )
    parsed = parse_bytes(tmp_path, with_header("{" + text + "}", bytes(24)))
    ((name, tensor),) = seen(parsed).items()
    assert (name, tensor[0]) == ("a", "U8")
    assert [f.rule for f in parsed.findings] == ["WG104"]


def test_a_cut_file_names_the_size_it_should_have(tmp_path: Path) -> None:
    whole = safetensors_bytes({c: ("F32", (64,), bytes(256)) for c in "abc"})
    for size in (len(whole) - 1, len(whole) - 300, len(whole) - 768):
        with pytest.raises(CheckpointError) as caught:
            parse_bytes(tmp_path, whole[:size])
        found = caught.value.finding
        assert found.rule == "WG102"
        assert str(len(whole)) in found.message
        assert found.location.offset == size


def test_a_file_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", {"a": ("F32", (64,), bytes(256))})
    (tensor,) = parse(path).tensors
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="8 bytes early"):
        tensor.read()


def test_offsets_of_findings_point_into_the_header(tmp_path: Path) -> None:
    text = '{"ääää":' + json.dumps(ENTRY) + ',"b":' + json.dumps(entry(dtype="X")) + "}"
    data = with_header(text, bytes(16))
    with pytest.raises(CheckpointError) as caught:
        parse_bytes(tmp_path, data)
    offset = caught.value.finding.location.offset
    assert offset is not None
    assert data[:offset].endswith(b'"b":')


def test_a_header_of_200_000_tensors(tmp_path: Path) -> None:
    entries = {
        f"model.layers.{n}.mlp.experts.gate_proj.weight": {
            "dtype": "BF16",
            "shape": [4, 2],
            "data_offsets": [16 * n, 16 * n + 16],
        }
        for n in range(200_000)
    }
    data = with_header(json.dumps(entries), bytes(16 * 200_000))
    started = time.process_time()
    parsed = parse_bytes(tmp_path, data)
    assert time.process_time() - started < 60
    assert len(parsed.tensors) == 200_000
    assert parsed.findings == ()


def outcome(tmp_path: Path, data: bytes) -> str:
    try:
        parsed = parse_bytes(tmp_path, data)
    except CheckpointError as error:
        return error.finding.rule
    return f"{len(parsed.tensors)} tensors" if parsed.tensors else "no tensors"


@pytest.mark.parametrize(
    "text",
    [
        '{"a":[' + "[]," * 5_000_000 + "1]}",
        '{"__metadata__":[' + "{}," * 5_000_000 + "1]}",
        '{"__metadata__":{"a":"' + "x" * 20_000_000,
        '{"__metadata__":{' + '"ab":"",' * 2_000_000 + '"a":""}}',
        "{" + '"a":1,' * 3_000_000 + "}",
        "{" + " " * 20_000_000 + "}",
        '{"a":{"dtype":"F32","shape":[' + "0," * 5_000_000 + "0]}}",
        '{"a":' + "9" * 20_000_000 + "}",
        '{"a":1.' + "3" * 20_000_000 + "}",
        '{"' + "\\u0041" * 3_000_000,
    ],
    ids=[
        "lists",
        "objects",
        "string",
        "metadata",
        "entries",
        "spaces",
        "shape",
        "digits",
        "float",
        "escapes",
    ],
)
def test_a_hostile_header_costs_little_time(tmp_path: Path, text: str) -> None:
    data = with_header(text)
    started = time.process_time()
    assert outcome(tmp_path, data) in ("WG103", "WG116", "no tensors")
    assert time.process_time() - started < 60


def test_a_million_deviations_are_few_findings(tmp_path: Path) -> None:
    holes = {f"t{n}": entry(data_offsets=[16 * n, 16 * n + 8]) for n in range(2000)}
    parsed = parse_bytes(tmp_path, with_header(json.dumps(holes), bytes(32_000)))
    assert {f.rule for f in parsed.findings} == {"WG105"}
    assert len(parsed.findings) <= 100
    one = f'"a":{json.dumps(entry(shape=[0], data_offsets=[0, 0]))}'
    parsed = parse_bytes(tmp_path, with_header("{" + ",".join([one] * 2000) + "}"))
    assert {f.rule for f in parsed.findings} == {"WG104"}
    assert len(parsed.findings) <= 100
