"""The wire cursor: fields, budgets, windows; and packed varints against plain Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.onnx import protobuf
from weightguard.checkpoint.onnx.protobuf import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    Wire,
    encoded,
    tag,
)
from weightguard.checkpoint.onnx.varints import (
    CHUNK_VALUES,
    MemoryRange,
    Storage,
    VarintError,
    packed_varints,
)
from weightguard.errors import CheckpointError

ANY = Storage(-(1 << 63), (1 << 63) - 1, 8)


def wire_of(folder: Path, data: bytes) -> Wire:
    path = folder / "f"
    path.write_bytes(data)
    return Wire(CheckpointFile(path, "f"))


def everything(wire: Wire) -> list[protobuf.Field]:
    return list(wire.fields(((0, wire.file.size),)))


def test_all_wire_types(tmp_path: Path) -> None:
    data = b"\x08\x96\x01" + b"\x12\x02hi" + b"\x1d" + bytes(4) + b"\x21" + bytes(8)
    wire = wire_of(tmp_path, data)
    assert everything(wire) == [
        (tag(1, VARINT), 1, 150),
        (tag(2, LENGTH), 5, 7),
        (tag(3, FIXED32), 8, 12),
        (tag(4, FIXED64), 13, 21),
    ]
    assert wire.text((5, 7), "text") == "hi"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, (1 << 64) - 1))
def test_varints_round_trip(tmp_path_factory: pytest.TempPathFactory, value: int) -> None:
    wire = wire_of(tmp_path_factory.mktemp("w"), b"\x08" + encoded(value))
    assert everything(wire)[0][2] == value


def test_signed_reads_two_complement() -> None:
    assert [protobuf.signed(v) for v in (0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)] == [
        0,
        (1 << 63) - 1,
        -(1 << 63),
        -1,
    ]


def test_fields_at_every_distance_from_the_window_edge(tmp_path: Path) -> None:
    for gap in range(protobuf.WINDOW_BYTES - 30, protobuf.WINDOW_BYTES + 5):
        filler = b"\x12" + encoded(gap) + bytes(gap)
        data = filler + b"\x08" + encoded(1 << 60) + filler + b"\x12\x01x"
        wire = wire_of(tmp_path, data)
        fields = everything(wire)
        wire.file.close()
        assert fields[1][2] == 1 << 60
        assert fields[3][2] == len(data)


def test_messages_may_be_read_while_an_outer_one_is_iterated(tmp_path: Path) -> None:
    inner = b"\x08\x05" + b"\x12" + encoded(200_000) + bytes(200_000)
    data = (b"\x0a" + encoded(len(inner)) + inner) * 3
    wire = wire_of(tmp_path, data)
    seen = [
        [v for k, _, v in wire.fields(((s, e),)) if k == 8]
        for _, s, e in wire.fields(((0, len(data)),))
    ]
    assert seen == [[5], [5], [5]]


def test_a_message_in_parts_is_their_concatenation(tmp_path: Path) -> None:
    wire = wire_of(tmp_path, b"\x08\x01\xff\xff\x08\x02")
    assert [v for _, _, v in wire.fields(((0, 2), (4, 6)))] == [1, 2]


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"\x08", "WG102"),
        (b"\x08\x80", "WG102"),
        (b"\x12\x05abc", "WG102"),
        (b"\x1d\x00", "WG102"),
        (b"\x80", "WG102"),
        (b"\x0b", "WG103"),
        (b"\x0c", "WG103"),
        (b"\x0e", "WG103"),
        (b"\x00\x00", "WG103"),
        (b"\x08" + b"\xff" * 11, "WG103"),
        (b"\xff" * 9 + b"\x01" + b"\x00", "WG103"),
    ],
)
def test_illegal_fields(tmp_path: Path, data: bytes, rule: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        everything(wire_of(tmp_path, data))
    assert caught.value.finding.rule == rule
    assert caught.value.finding.location.file == "f"


def test_a_nested_field_may_not_leave_its_message(tmp_path: Path) -> None:
    wire = wire_of(tmp_path, b"\x12\x04\x12\x05abcdefgh")
    with pytest.raises(CheckpointError) as caught:
        list(wire.fields(((2, 6),)))
    assert (caught.value.finding.rule, caught.value.finding.location.offset) == ("WG103", 2)


def test_budgets_are_shared_by_all_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 5)
    monkeypatch.setattr(protobuf, "MAX_COPIED_BYTES", 5)
    wire = wire_of(tmp_path, b"\x08\x01" * 3)
    assert len(everything(wire)) == 3
    with pytest.raises(CheckpointError, match="more than 5 fields"):
        everything(wire)
    wire.text((0, 4), "text")
    with pytest.raises(CheckpointError, match="more than 5 bytes") as caught:
        wire.text((0, 4), "text")
    assert caught.value.finding.rule == "WG116"


def test_small_packed_lists(tmp_path: Path) -> None:
    wire = wire_of(tmp_path, b"\x01\x80\x01\x03")
    assert wire.varints((0, 4), 3) == [1, 128, 3]
    with pytest.raises(CheckpointError):
        wire.varints((0, 4), 2)
    with pytest.raises(CheckpointError):
        wire.varints((0, 2), 3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=40), st.data())
def test_packed_varints_read_like_an_array(values: list[int], data: st.DataObject) -> None:
    packed = b"".join(encoded(v % (1 << 64)) for v in values)
    source = packed_varints(MemoryRange(packed), len(packed), ANY)
    expected = np.array(values, "<i8").tobytes()
    assert source.count == len(values)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    buffer = bytearray(stop - start)
    source.read_into(start, memoryview(buffer))
    assert bytes(buffer) == expected[start:stop]


@pytest.mark.parametrize("count", [CHUNK_VALUES - 1, CHUNK_VALUES, CHUNK_VALUES + 1])
@pytest.mark.parametrize("width", [1, 2, 10])
def test_packed_varints_around_a_chunk(count: int, width: int) -> None:
    value = {1: 5, 2: 300, 10: -1}[width]
    packed = encoded(value % (1 << 64)) * count
    source = packed_varints(MemoryRange(packed), len(packed), ANY)
    assert (source.count, len(source.places)) == (count, -(-count // CHUNK_VALUES))
    buffer = bytearray(count * 8)
    source.read_into(0, memoryview(buffer))
    assert bytes(buffer) == np.full(count, value, "<i8").tobytes()


def test_six_bit_codes_are_packed_low_bits_first() -> None:
    codes = bytes(range(60)) * 2
    storage = Storage(0, 63, 1, six_bits=True)
    source = packed_varints(MemoryRange(codes), len(codes), storage)
    buffer = bytearray(len(codes) * 6 // 8)
    source.read_into(0, memoryview(buffer))
    expected = sum(code << (6 * i) for i, code in enumerate(codes))
    assert int.from_bytes(buffer, "little") == expected


@pytest.mark.parametrize("after", [0, 100])
@pytest.mark.parametrize(
    ("packed", "offset"),
    [
        (b"\x01\x80", 1),
        (b"\x80" * 30, 0),
        (b"\x01" + b"\x80" * 10 + b"\x00", 1),
        (b"\x01" + b"\xff" * 9 + b"\x02", 1),
        (b"\x01\x02" + encoded(128), 2),
    ],
)
def test_bad_packed_varints_say_where(packed: bytes, offset: int, after: int) -> None:
    # few values and many take different paths
    packed, offset = b"\x01" * after + packed, after + offset
    with pytest.raises(VarintError) as caught:
        packed_varints(MemoryRange(packed), len(packed), Storage(-128, 127, 1))
    assert caught.value.offset == offset
