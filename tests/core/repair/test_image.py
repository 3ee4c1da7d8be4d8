"""An image is the file with patches over it, at every edge."""

from __future__ import annotations

import random
from pathlib import Path

from weightguard.checkpoint.files import CheckpointFile
from weightguard.repair.image import Image, PatchStore
from weightguard.scan.digest import BLOCK_BYTES


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


def test_differences_make_the_image_of_what_is_stored(tmp_path: Path) -> None:
    """Patches may overlap where tensors do, and lie beyond the end; runs never overlap."""
    choose = random.Random(6)
    size, longer = 3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 50_000
    stored = choose.randbytes(size)
    (tmp_path / "f").write_bytes(stored)
    file, store = CheckpointFile(tmp_path / "f", "f"), PatchStore()
    image = Image("f", file, longer, store)
    made = bytearray(stored + bytes(50_000))
    for owner in range(40):
        start = choose.randrange(longer)
        data = bytearray(made[start : start + choose.randrange(1, BLOCK_BYTES)])
        for _ in range(owner % 3):
            data[choose.randrange(len(data))] ^= 1
        image.patch(start, data, owner)
    expected = bytearray(longer)
    image.read_into(0, memoryview(expected))
    assert expected != made
    reached = 0
    for run in image.differences():
        end = run.offset + len(run.old)
        assert reached <= run.offset < end <= longer
        assert len(run.old) == len(run.new) <= BLOCK_BYTES
        assert run.old == made[run.offset : end]
        made[run.offset : end] = run.new
        reached = end
    assert made == expected
    file.close()
    store.close()


def test_one_changed_byte_is_a_run_of_one_sector(tmp_path: Path) -> None:
    data = bytes(BLOCK_BYTES)
    (tmp_path / "f").write_bytes(data)
    file, store = CheckpointFile(tmp_path / "f", "f"), PatchStore()
    image = Image("f", file, len(data), store)
    image.patch(0, data[:10_000] + b"x" + data[10_001:], 0)
    assert [(d.offset, len(d.old)) for d in image.differences()] == [(8192, 4096)]
    image.drop(0)
    image.patch(0, data, 0)
    assert [*image.differences()] == []
    file.close()
    store.close()
