"""Mutated GGUF files: a finding or a sound reading, within bounds, and never anything else."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from tests.gguf_files import (
    ARRAY,
    F16,
    Q4_0,
    STRING,
    U8,
    U32,
    Info,
    array,
    entry,
    gguf_bytes,
    string,
    text,
    u32,
)
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.gguf import parse_gguf, split_names
from weightguard.errors import CheckpointError

MUTANTS = 4000
SLOWEST_PARSE = 60.0
PEAK_BYTES = 4 << 20

EDGES = (
    0, 1, 2, 4, 7, 8, 9, 13, 31, 32, 255, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 34,
    (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1,
)  # fmt: skip
"""Numbers near the limits of fields and of arithmetic."""


def rich_file() -> bytes:
    strings = array(STRING, 3, text(b"one") + text(b"") + text(b"three"))
    nested = array(ARRAY, 2, array(U8, 2, b"ab") + array(STRING, 1, text(b"x")))
    entries = [
        string(b"general.architecture", b"llama"),
        u32(b"general.alignment", 64),
        entry(b"tokens", ARRAY, strings),
        entry(b"nested", ARRAY, nested),
        entry(b"scores", ARRAY, array(U32, 4, bytes(16))),
        u32(b"split.no", 0),
        u32(b"split.count", 1),
    ]
    infos = (
        Info(b"a", (4, 2)),
        Info(b"b", (32, 2), Q4_0, 64),
        Info(b"c", (3, 2, 2, 1), F16, 128),
    )
    return gguf_bytes(infos, bytes(152), entries=entries, alignment=64)


def mutated(seed: bytes, rng: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        # most of the file's end is data, which says nothing to a parser
        at = rng.randrange(min(len(data), 560))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 8] = struct.pack("<Q", rng.choice(EDGES))
        elif kind == 2:
            data[at : at + 4] = struct.pack("<I", rng.choice(EDGES) & 0xFFFFFFFF)
        elif kind == 3:
            del data[at : at + rng.choice((1, 4, 8, 50))]
        elif kind == 4:
            start = rng.randrange(len(data))
            data[at:at] = data[start : start + rng.randrange(1, 64)]
        else:
            del data[rng.randrange(4, len(data)) :]
        if len(data) < 8:
            return bytes(data)
    return bytes(data)


def outcome(path: Path) -> str:
    file = CheckpointFile(path, path.name)
    try:
        result = parse_gguf(file)
        for tensor in result.tensors:
            assert tensor.offset is not None
            assert tensor.offset + tensor.nbytes <= file.size or tensor.nbytes == 0
            assert len(tensor.read()) == tensor.nbytes
        assert all(finding.message.isprintable() for finding in result.findings)
        assert len({tensor.name for tensor in result.tensors}) == len(result.tensors)
        split_names(file)
    except CheckpointError as error:
        return error.finding.rule if error.finding.message.isprintable() else "unprintable"
    finally:
        file.close()
    return "findings" if result.findings else "sound"


def test_mutations_never_surprise(tmp_path: Path, claim: Callable[[str], None]) -> None:
    rng = random.Random(20231114)
    seed = rich_file()
    path = tmp_path / "w.gguf"
    path.write_bytes(seed)
    assert outcome(path) == "sound"
    seen: dict[str, int] = {}
    peak = 0
    for number in range(MUTANTS):
        traced = number % 16 == 0
        if traced:
            tracemalloc.start()
        path.write_bytes(mutated(seed, rng))
        started = time.process_time()
        result = outcome(path)
        assert time.process_time() - started < SLOWEST_PARSE
        seen[result] = seen.get(result, 0) + 1
        if traced:
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    claim(f"GGUF fuzz: {MUTANTS} mutated files, {dict(sorted(seen.items()))}")
    assert peak < PEAK_BYTES
    rules = {"WG101", "WG102", "WG103", "WG106", "WG107", "WG108", "WG116", "WG119"}
    assert "unprintable" not in seen
    assert rules | {"sound", "findings"} <= set(seen)


def test_single_flips_all_over_the_header(tmp_path: Path) -> None:
    seed = rich_file()
    path = tmp_path / "w.gguf"
    header = len(seed) - 152
    # three has no factor of eight: every byte, and every place in a byte
    for bit in range(0, header * 8, 3):
        data = bytearray(seed)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        outcome(path)


def test_splices_of_two_files(tmp_path: Path) -> None:
    rng = random.Random(5)
    first, second = rich_file(), gguf_bytes(version=2)
    path = tmp_path / "w.gguf"
    for _ in range(300):
        cut, resume = rng.randrange(len(first)), rng.randrange(len(second))
        path.write_bytes(first[:cut] + second[resume:])
        outcome(path)
