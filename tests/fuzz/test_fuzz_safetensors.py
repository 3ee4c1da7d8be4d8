"""Seeded mutations of headers and indexes: tensors or CheckpointError, soon and small."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from tests.checkpoints import Tensors, safetensors_bytes
from weightguard.checkpoint import open_checkpoint
from weightguard.errors import CheckpointError

MUTANTS_EACH = 2500
SLOWEST_OPENING = 5.0
PEAK_BYTES = 16 << 20

TENSORS: Tensors = {
    "a.weight": ("BF16", (4, 8), bytes(64)),
    "a.bias": ("F32", (4,), bytes(16)),
    "empty": ("I64", (0, 3), b""),
    "scalar": ("U8", (), b"x"),
    "packed": ("F4", (6,), bytes(3)),
}
TOKENS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"null", b"true",
    b"NaN", b"-1", b"0", b"1e9", b"18446744073709551616", b"9" * 5000, b"[" * 2000, b"{}" * 9,
    b'"a.bias"', b'"dtype"', b'"shape":[0]', b'"__metadata__"', b'"../x"', b'"/dev/zero"',
    b"\x00", b"\xff", b"\xf0\x9f\x98\x80", b" " * 300, b"\x1b[31m",
)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        position = rng.randrange(len(out) + 1)
        width = rng.choice((0, 0, 1, 1, 4, 30))
        action = rng.randrange(5)
        if action == 0:
            out[position : position + width] = rng.choice(TOKENS)
        elif action == 1:
            del out[position : position + max(width, 1)]
        elif action == 2:
            out[position:position] = out[position : position + rng.randrange(1, 120)]
        elif action == 3 and position < len(out):
            out[position] ^= 1 << rng.randrange(8)
        else:
            out[position : position + 1] = str(rng.randrange(1 << rng.randrange(1, 70))).encode()
    return bytes(out)


def outcome(path: Path) -> str:
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        found = [error.finding]
        result = error.finding.rule
    else:
        with checkpoint:
            found = list(checkpoint.findings)
            names = [tensor.name for tensor in checkpoint.tensors]
            assert len(set(names)) == len(names)
            for tensor in checkpoint.tensors:
                assert len(tensor.read()) == tensor.nbytes <= 4096
            result = "read, with findings" if found else "read"
    assert all(f.message.isprintable() and len(f.message) < 500 for f in found)
    return result


def fuzz(path: Path, opened: Path, make: Callable[[], bytes]) -> dict[str, int]:
    """Write what ``make`` returns to ``path`` and open ``opened``, over and over."""
    seen: dict[str, int] = {}
    for number in range(MUTANTS_EACH):
        traced = number % 16 == 0
        path.write_bytes(make())
        if traced:
            tracemalloc.start()
        started = time.process_time()
        result = outcome(opened)
        assert time.process_time() - started < SLOWEST_OPENING
        if traced:
            assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
            tracemalloc.stop()
        seen[result] = seen.get(result, 0) + 1
    return dict(sorted(seen.items()))


def test_mutated_headers_never_surprise(tmp_path: Path, claim: Callable[[str], None]) -> None:
    rng = random.Random(20240301)
    seed = safetensors_bytes(TENSORS)
    length = int.from_bytes(seed[:8], "little")
    path = tmp_path / "model.safetensors"

    def make() -> bytes:
        if rng.randrange(4) == 0:
            return mutated(seed, rng)
        # a length that fits lets the damage reach the parser
        text = mutated(seed[8 : 8 + length], rng)
        return len(text).to_bytes(8, "little") + text + seed[8 + length :]

    seen = fuzz(path, path, make)
    claim(f"safetensors fuzz: {MUTANTS_EACH} mutated files, {seen}")
    assert {"read", "read, with findings", "WG103", "WG107"} <= set(seen)


def test_mutated_indexes_never_surprise(tmp_path: Path, claim: Callable[[str], None]) -> None:
    rng = random.Random(20240302)
    items = list(TENSORS.items())
    weight_map: dict[str, str] = {}
    for number, part in enumerate((items[:3], items[3:])):
        name = f"m-{number}.safetensors"
        (tmp_path / name).write_bytes(safetensors_bytes(dict(part)))
        weight_map |= dict.fromkeys(dict(part), name)
    index = {"metadata": {"total_size": 84}, "weight_map": weight_map}
    seed = json.dumps(index).encode()
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(seed)
    assert outcome(tmp_path) == "read"
    seen = fuzz(path, tmp_path, lambda: mutated(seed, rng))
    claim(f"shard index fuzz: {MUTANTS_EACH} mutated indexes, {seen}")
    assert {"read", "read, with findings", "WG109"} <= set(seen)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    seed = safetensors_bytes(TENSORS)
    path = tmp_path / "model.safetensors"
    for size in range(len(seed)):
        path.write_bytes(seed[:size])
        assert outcome(path) in ("WG101", "WG102")
