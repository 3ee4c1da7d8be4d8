"""An image is the file with patches over it, at every edge."""

from __future__ import annotations

import random
from pathlib import Path

from weightguard.checkpoint.files import CheckpointFile
from weightguard.repair.image import Image, PatchStore


def test_reads_agree_with_a_plain_buffer(tmp_path: Path) -> None:
    choose = random.Random(5)
    stored = choose.randbytes(1000)
    (tmp_path / "f").write_bytes(stored)
    file, store = CheckpointFile(tmp_path / "f", "f"), PatchStore()
    image = Image("f", file, 1200, store)
    expected = bytearray(stored + bytes(200))
    for _ in range(300):
        start = choose.randrange(1200)
        data = choose.randbytes(choose.randrange(1200 - start))
        first = choose.randrange(1200)
        last = choose.randrange(first, 1200)
        got = bytearray(last - first)
        image.read_into(first, memoryview(got))
        assert got == expected[first:last]
        if not any(p.offset < start + len(data) and start < p.offset + p.length
                   for p in image.patches):  # fmt: skip
            image.patch(start, data, 1)
            expected[start : start + len(data)] = data
    image.drop(1)
    got = bytearray(1200)
    image.read_into(0, memoryview(got))
    assert got == stored + bytes(200)
    file.close()
    store.close()


def test_a_missing_file_reads_as_zeros() -> None:
    image = Image("f", None, 10, PatchStore())
    got = bytearray(b"x" * 10)
    image.read_into(0, memoryview(got))
    assert got == bytes(10)
    assert image.changed
