"""Malformed and hostile GGUF files: each gives exactly the finding that the table says."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gguf_files import (
    ARRAY,
    BOOL,
    F16,
    Q4_0,
    Q6_K,
    STRING,
    U32,
    U64,
    Info,
    array,
    entry,
    gguf_bytes,
    string,
    text,
    u32,
)
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.gguf import parse_gguf
from weightguard.errors import CheckpointError
from weightguard.tensor import MAX_DIMENSIONS

HUGE = 1 << 34
MOST = (1 << 64) - 1
SOUND = gguf_bytes()

SECONDS = 0.5
PEAK_BYTES = 8 << 20


@dataclass(frozen=True)
class Case:
    id: str
    build: Callable[[], bytes]
    rule: str
    fatal: bool = True
    says: str = ""


def one(*entries: bytes) -> bytes:
    return gguf_bytes(entries=entries)


def tensor(**fields: object) -> bytes:
    return gguf_bytes((Info(**fields),))  # type: ignore[arg-type]


def two(second: int, size: int) -> bytes:
    return gguf_bytes((Info(b"a"), Info(b"b", offset=second)), bytes(size))


def with_alignment(kind: int, value: bytes) -> bytes:
    return one(entry(b"general.alignment", kind, value))


def nested_arrays(depth: int) -> bytes:
    value = array(U32, 1, bytes(4))
    for _ in range(depth - 1):
        value = array(ARRAY, 1, value)
    return one(entry(b"k", ARRAY, value))


def big_endian() -> bytes:
    return b"GGUF" + struct.pack(">IQQ", 3, 1, 0) + bytes(64)


def in_array(kind: int, count: int, elements: bytes = b"") -> bytes:
    return one(entry(b"k", ARRAY, array(kind, count, elements)))


def without_tensors(kind: int, count: int, elements: bytes = b"") -> bytes:
    return gguf_bytes((), b"", entries=[entry(b"k", ARRAY, array(kind, count, elements))])


CASES = (
    Case("empty", lambda: b"", "WG101"),
    Case("magic cut", lambda: b"GGU", "WG101"),
    Case("other magic", lambda: b"GGML" + SOUND[4:], "WG101"),
    Case("magic reversed", lambda: b"FUGG" + SOUND[4:], "WG119", says="big-endian"),
    Case("big-endian", big_endian, "WG119", says="big-endian"),
    Case("version 0", lambda: gguf_bytes(version=0), "WG103"),
    Case("version 1", lambda: gguf_bytes(version=1), "WG119", says="version 1"),
    Case("version 4", lambda: gguf_bytes(version=4), "WG119", says="version 4"),
    Case("version cut", lambda: SOUND[:6], "WG102"),
    Case("counts cut", lambda: SOUND[:20], "WG102"),
    Case("header cut", lambda: SOUND[:40], "WG102"),
    Case("data cut", lambda: SOUND[:-1], "WG102", says=str(len(SOUND))),
    Case("data missing", lambda: SOUND[:-32], "WG102", says=str(len(SOUND))),
    Case("2^34 tensors", lambda: gguf_bytes(tensors=HUGE), "WG116"),
    Case("2^64-1 tensors", lambda: gguf_bytes(tensors=MOST), "WG116"),
    Case("more tensors than bytes", lambda: gguf_bytes(tensors=1000), "WG102"),
    Case("one tensor more, in the padding", lambda: gguf_bytes(tensors=2), "WG105", fatal=False),
    Case("2^34 pairs", lambda: gguf_bytes(pairs=HUGE), "WG116"),
    Case("more pairs than bytes", lambda: gguf_bytes(pairs=1000), "WG102"),
    Case("key of 2^63 bytes", lambda: one(text(b"k", 1 << 63)), "WG116"),
    Case("key past the end", lambda: one(text(b"k", 50_000) + bytes(8)), "WG102"),
    Case("key not UTF-8", lambda: one(u32(b"\xff\xfe", 1)), "WG103", fatal=False),
    Case("duplicate key", lambda: one(u32(b"k", 1), u32(b"k", 2)), "WG103", fatal=False),
    Case("duplicate array key", lambda: one(*[entry(b"k", ARRAY, array(U32, 0, b""))] * 2),
         "WG103", fatal=False),
    Case("unknown value type", lambda: one(entry(b"k", 13, bytes(8))), "WG103"),
    Case("value type 2^32-1", lambda: one(entry(b"k", (1 << 32) - 1, bytes(8))), "WG103"),
    Case("truth value 2", lambda: one(entry(b"k", BOOL, b"\2")), "WG103", fatal=False),
    Case("string of 2^64-1 bytes", lambda: one(entry(b"k", STRING, text(b"", MOST))), "WG116"),
    Case("string past the end", lambda: one(entry(b"k", STRING, text(b"", 1 << 20))), "WG102"),
    Case("string not UTF-8", lambda: one(string(b"k", b"\xc3")), "WG103", fatal=False),
    Case("array of an unknown type", lambda: in_array(13, 1, bytes(16)), "WG103"),
    Case("array of 2^64-1 numbers", lambda: in_array(U64, MOST), "WG116"),
    Case("array of 2^61 numbers wraps", lambda: in_array(U64, 1 << 61), "WG116"),
    Case("array past the end", lambda: in_array(U32, 1 << 20), "WG102"),
    Case("array of 2^34 strings", lambda: in_array(STRING, HUGE), "WG116"),
    Case("strings past the end", lambda: without_tensors(STRING, 1 << 20, bytes(800)), "WG102"),
    Case("string in an array wraps", lambda: in_array(STRING, 2, text(b"", MOST - 7) + bytes(8)),
         "WG116"),
    Case("array of 2^34 arrays", lambda: in_array(ARRAY, HUGE), "WG116"),
    Case("arrays nested 5 deep", lambda: nested_arrays(5), "WG116"),
    Case("arrays nested 5,000 deep", lambda: nested_arrays(5000), "WG116"),
    Case("alignment 0", lambda: with_alignment(U32, bytes(4)), "WG103"),
    Case("alignment 24", lambda: with_alignment(U32, struct.pack("<I", 24)), "WG103"),
    Case("alignment 2^31", lambda: with_alignment(U32, struct.pack("<I", 1 << 31)), "WG116"),
    Case("alignment of 64 bits", lambda: with_alignment(U64, struct.pack("<Q", 32)), "WG103"),
    Case("alignment as text", lambda: with_alignment(STRING, text(b"32")), "WG103"),
    Case("alignment as an array", lambda: with_alignment(ARRAY, array(U32, 1, bytes(4))), "WG103"),
    Case("name of 2^63 bytes", lambda: SOUND[:24] + text(b"w", 1 << 63) + bytes(64), "WG116"),
    Case("name past the end", lambda: SOUND[:24] + text(b"w", 5000) + bytes(64), "WG102"),
    Case("name not UTF-8", lambda: tensor(name=b"\xff"), "WG103", fatal=False),
    Case("duplicate name", lambda: gguf_bytes((Info(), Info(offset=32)), bytes(64)), "WG104",
         fatal=False),
    Case("five dimensions", lambda: tensor(ne=(2, 2, 2, 1, 1)), "WG107", fatal=False),
    Case("too many dimensions", lambda: tensor(ne=(1,) * (MAX_DIMENSIONS + 1)), "WG103"),
    Case("2^32-1 dimensions", lambda: tensor(dimensions=(1 << 32) - 1), "WG103"),
    Case("type 4, removed", lambda: tensor(kind=4), "WG108", says="4"),
    Case("type 31, removed", lambda: tensor(kind=31), "WG108", says="31"),
    Case("type 36, removed", lambda: tensor(kind=36), "WG108", says="36"),
    Case("type 99, unknown", lambda: tensor(kind=99), "WG108", says="99"),
    Case("type 2^32-1", lambda: tensor(kind=(1 << 32) - 1), "WG108", says="4294967295"),
    Case("half a block a row", lambda: tensor(kind=Q4_0, ne=(16, 4)), "WG107", says="32"),
    Case("row of no whole blocks", lambda: tensor(kind=Q6_K, ne=(128, 2)), "WG107", says="256"),
    Case("block type without dimensions", lambda: tensor(kind=Q4_0, ne=()), "WG107"),
    Case("size wraps 64 bits", lambda: tensor(ne=(1 << 32, 1 << 32)), "WG106"),
    Case("size wraps to small", lambda: tensor(ne=(1 << 62, 4, 2)), "WG106"),
    Case("2^64-1 by nothing", lambda: tensor(ne=(MOST, 0)), "WG106"),
    Case("four huge dimensions", lambda: tensor(ne=(MOST,) * 4), "WG106"),
    Case("size past the end", lambda: tensor(ne=(4, 3)), "WG102", says="144"),
    Case("offset past the end", lambda: tensor(offset=1 << 20), "WG106"),
    Case("offset wraps", lambda: tensor(offset=MOST - 31), "WG106"),
    Case("unaligned offset", lambda: two(40, 72), "WG106", fatal=False),
    Case("overlap", lambda: gguf_bytes((Info(b"a", (16, 1)), Info(b"b", offset=32)), bytes(64)),
         "WG105", fatal=False),
    Case("same bytes twice", lambda: two(0, 32), "WG105", fatal=False),
    Case("hole", lambda: two(96, 128), "WG105", fatal=False, says="64 bytes"),
    Case("hole before the first", lambda: gguf_bytes((Info(offset=64),), bytes(96)), "WG105",
         fatal=False, says="64 bytes"),
    Case("trailing bytes", lambda: SOUND + bytes(7), "WG105", fatal=False, says="7 bytes"),
    Case("data without tensors", lambda: gguf_bytes((), bytes(100)), "WG105", fatal=False),
    Case("half-precision cut", lambda: gguf_bytes((Info(kind=F16, ne=(64,)),), bytes(64)), "WG102"),
)  # fmt: skip


def parse(data: bytes, path: Path) -> tuple[list[tuple[str, bool]], str]:
    """Return (rule, fatal) of each finding, and the messages."""
    path.write_bytes(data)
    file = CheckpointFile(path, path.name)
    try:
        found, fatal = list(parse_gguf(file).findings), False
    except CheckpointError as error:
        found, fatal = [error.finding], True
    finally:
        file.close()
    for finding in found:
        assert finding.location.file == path.name
        assert finding.remedy
        assert finding.message.isprintable()
        assert len(finding.message) < 400
        offset = finding.location.offset
        assert offset is not None
        assert 0 <= offset <= len(data)
    return [(f.rule, fatal) for f in found], " ".join(f.message for f in found)


def test_the_sound_file_is_sound(tmp_path: Path) -> None:
    assert parse(SOUND, tmp_path / "w.gguf") == ([], "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_malformed(tmp_path: Path, case: Case) -> None:
    data = case.build()
    tracemalloc.start()
    started = time.process_time()
    found, message = parse(data, tmp_path / "w.gguf")
    elapsed = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(case.rule, case.fatal)]
    assert case.says in message
    assert elapsed < SECONDS
    assert peak < PEAK_BYTES + len(data)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    entries = [string(b"s", b"text"), entry(b"a", ARRAY, array(STRING, 2, text(b"x") + text(b"")))]
    infos = (Info(b"a"), Info(b"b", (32, 2), Q4_0, 32))
    data = gguf_bytes(infos, bytes(32 + 36), entries=entries)
    path = tmp_path / "w.gguf"
    assert parse(data, path) == ([], "")
    for size in range(4, len(data)):
        assert parse(data[:size], path)[0] == [("WG102", True)], size
    for size in range(4):
        assert parse(data[:size], path)[0] == [("WG101", True)]


def test_the_first_of_two_equal_names_is_kept(tmp_path: Path) -> None:
    # the header lists the tensor whose data comes second first
    infos = (Info(offset=32), Info(offset=0))
    path = tmp_path / "w.gguf"
    path.write_bytes(gguf_bytes(infos, bytes(32) + b"\1" * 32))
    (kept,) = parse_gguf(CheckpointFile(path, path.name)).tensors
    assert kept.read() == b"\1" * 32


def test_a_sparse_file_full_of_empty_strings_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "w.gguf"
    path.write_bytes(without_tensors(STRING, 4_000_000))
    os.truncate(path, 1 << 36)
    started = time.process_time()
    result = parse_gguf(CheckpointFile(path, path.name))
    assert time.process_time() - started < 60
    assert [finding.rule for finding in result.findings] == ["WG105"]


def test_a_sparse_file_full_of_long_strings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.gguf"
    path.write_bytes(without_tensors(STRING, 4_000_000))
    length = 200 << 20
    with path.open("r+b") as file:
        file.seek(24 + 9 + 4 + 12)
        for _ in range(10):
            file.write(struct.pack("<Q", length))
            file.seek(length, os.SEEK_CUR)
    os.truncate(path, 1 << 36)
    with pytest.raises(CheckpointError) as error:
        parse_gguf(CheckpointFile(path, path.name))
    assert error.value.finding.rule == "WG116"


def test_a_million_byte_name_is_cut_in_messages(tmp_path: Path) -> None:
    name = b"\x1b[31m::error\n" * 80_000
    found, message = parse(tensor(name=name, kind=99), tmp_path / "w.gguf")
    assert found == [("WG108", True)]
    assert "\\x1b" in message
