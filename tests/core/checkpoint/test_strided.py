"""Strided views give the bytes that NumPy's copy in C order gives, wherever a read begins."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.torch_zip import strided
from weightguard.checkpoint.torch_zip.strided import SlabCache, StridedRange, boxes
from weightguard.errors import CheckpointError

START = 24


class Traffic(CheckpointFile):
    """Counts what is read."""

    calls = 0
    nbytes = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.calls += 1
        self.nbytes += len(buffer)
        super().read_into(offset, buffer)


def stored(folder: Path, array: np.ndarray) -> Traffic:
    path = folder / "weights"
    path.write_bytes(bytes(START) + array.tobytes())
    return Traffic(path, "weights")


def view_of(file: CheckpointFile, base: np.ndarray, view: np.ndarray) -> StridedRange:
    start = START + view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return StridedRange(file, start, view.shape, view.strides, view.itemsize, SlabCache())


def read(source: StridedRange, start: int, stop: int) -> bytes:
    data = bytearray(stop - start)
    source.read_into(start, memoryview(data))
    return bytes(data)


BASE = np.arange(2 * 3 * 40 * 50, dtype="<u4").reshape(2, 3, 40, 50)
VIEWS = {
    "transposed": BASE[0, 0].T,
    "permuted": BASE.transpose(3, 1, 0, 2),
    "sliced": BASE[1, :, 3:37, 5:48],
    "every-third": BASE[0, 1, ::3, ::7],
    "column": BASE[0, 0, :, 9],
    "expanded": np.broadcast_to(BASE[0, 0, :, :1], (40, 7)),
    "expanded-in-front": np.broadcast_to(BASE[1, 1, 2], (9, 50)),
    "one-value-everywhere": np.broadcast_to(BASE[0, 0, 0, :1], (5, 6)),
    "single-dimensions": BASE.transpose(3, 1, 0, 2)[:, :1, :1],
    "overlapping-windows": np.lib.stride_tricks.sliding_window_view(BASE[0, 0, 0], 8),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("slab", [64, 1000, 8 << 20])
def test_any_range_of_any_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, slab: int
) -> None:
    monkeypatch.setattr(strided, "SLAB_BYTES", slab)
    monkeypatch.setattr(strided, "WINDOW_BYTES", 2 * slab)
    view = VIEWS[name]
    file = stored(tmp_path, BASE)
    source = view_of(file, BASE, view)
    expected = view.tobytes()
    assert read(source, 0, len(expected)) == expected
    rng = random.Random(7)
    for _ in range(20):
        start = rng.randrange(len(expected))
        stop = rng.randint(start, min(len(expected), start + 3000))
        assert read(source, start, stop) == expected[start:stop]
    file.close()


@pytest.mark.parametrize("itemsize", [1, 2, 8, 16])
def test_every_width_of_element(tmp_path: Path, itemsize: int) -> None:
    base = np.arange(64 * itemsize, dtype=np.uint8).view(f"V{itemsize}").reshape(8, 8)
    file = stored(tmp_path, base)
    assert read(view_of(file, base, base.T), 0, base.nbytes) == base.T.tobytes()
    file.close()


@settings(max_examples=150, deadline=None)
@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=5), ends=st.randoms())
def test_boxes_cover_a_range_once_and_in_order(shape: list[int], ends: random.Random) -> None:
    numbers = np.arange(np.prod(shape)).reshape(shape)
    first = ends.randint(0, numbers.size)
    last = ends.randint(first, numbers.size)
    covered: list[int] = []
    found = list(boxes(shape, first, last))
    for starts, sizes in found:
        part = tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
        assert numbers[part].shape == tuple(sizes)
        covered += numbers[part].ravel().tolist()
    assert covered == list(range(first, last))
    assert len(found) <= 2 * len(shape)


def test_a_transposed_matrix_is_read_about_once(tmp_path: Path) -> None:
    base = np.random.default_rng(5).integers(0, 1 << 16, (3000, 4000)).astype("<u2")
    file = stored(tmp_path, base)
    source = view_of(file, base, base.T)
    block = 1 << 20
    gathered = b"".join(
        read(source, at, min(at + block, base.nbytes)) for at in range(0, base.nbytes, block)
    )
    assert gathered == base.T.tobytes()
    slabs = -(-base.nbytes // strided.SLAB_BYTES)
    assert file.nbytes <= (slabs + 1) * base.nbytes
    assert file.calls <= (slabs + 1) * len(base)
    file.close()


def test_memory_is_bounded_by_the_cache(tmp_path: Path) -> None:
    base = np.zeros((64, 64), "<f4")
    file = stored(tmp_path, base)
    cache = SlabCache()
    views = [
        StridedRange(file, START, (64, 64), (4, 256), 4, cache)
        for _ in range(3 * strided.MAX_SLABS)
    ]
    for view in views:
        assert read(view, 0, base.nbytes) == base.tobytes()
    assert len(cache._slabs) <= strided.MAX_SLABS
    file.close()


def test_a_file_cut_after_opening_is_a_finding(tmp_path: Path) -> None:
    base = np.zeros((64, 64), "<f4")
    file = stored(tmp_path, base)
    source = view_of(file, base, base.T)
    with (tmp_path / "weights").open("r+b") as opened:
        opened.truncate(1000)
    with pytest.raises(CheckpointError) as caught:
        read(source, 0, base.nbytes)
    assert caught.value.finding.rule == "WG102"
    file.close()
