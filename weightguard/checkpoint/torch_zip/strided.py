"""Canonical bytes of a view that is not contiguous, gathered slab by slab in bounded memory.

A slab is a run of canonical bytes, whole rows where they fit, so that even a transposed matrix is
read in long pieces: each column's share of a slab in one read.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from weightguard.checkpoint.files import CheckpointFile

SLAB_BYTES = 8 << 20
MAX_SLABS = 8
WINDOW_BYTES = 4 << 20
"""At most this much of the file is in memory while a slab is gathered."""
SKIP_BYTES = 16 << 10
"""Gaps up to this size are read over: cheaper than a read on either side."""

_Bytes = npt.NDArray[Any]


class SlabCache:
    """The slabs gathered last, shared by the views of one file; safe to use from threads.

    Holds at most a slab for every core and one more, and never more than ``MAX_SLABS``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slabs: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._capacity = min(MAX_SLABS, (os.cpu_count() or 1) + 1)

    def get(self, view: StridedRange, index: int) -> bytes:
        """Return slab number ``index`` of a view, gathered now or not long ago."""
        key = (id(view), index)
        with self._lock:
            slab = self._slabs.pop(key, None)
            if slab is None:
                while len(self._slabs) >= self._capacity:
                    self._slabs.popitem(last=False)
                slab = view.gather(index)
            self._slabs[key] = slab
            return slab


@dataclass(frozen=True, slots=True, eq=False)
class StridedRange:
    """The ByteSource of a strided view of a file.

    Element (i, j, ...) of ``itemsize`` bytes lies at file offset ``start`` + i * ``strides[0]`` +
    j * ``strides[1]`` + ...; strides count bytes, are multiples of ``itemsize`` and not negative.
    The caller has checked that all elements lie in the file.
    """

    file: CheckpointFile
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    cache: SlabCache
    _dtype: np.dtype[Any] = field(init=False)
    _slab_elements: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_dtype", np.dtype(f"V{self.itemsize}"))
        object.__setattr__(self, "_slab_elements", _slab_elements(self.shape, self.itemsize))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        slab_bytes = self._slab_elements * self.itemsize
        done = 0
        while done < len(buffer):
            index, skipped = divmod(offset + done, slab_bytes)
            slab = self.cache.get(self, index)
            count = min(len(buffer) - done, len(slab) - skipped)
            buffer[done : done + count] = memoryview(slab)[skipped : skipped + count]
            done += count

    def gather(self, index: int) -> bytes:
        """Return the canonical bytes of slab number ``index``."""
        first = index * self._slab_elements
        last = min(first + self._slab_elements, math.prod(self.shape))
        out = np.empty(last - first, self._dtype)
        place = 0
        for starts, sizes in boxes(self.shape, first, last):
            count = math.prod(sizes)
            start = self.start + sum(map(int.__mul__, starts, self.strides))
            self._fill(start, out[place : place + count].reshape(sizes), self.strides)
            place += count
        return out.tobytes()

    def _fill(self, start: int, out: _Bytes, strides: Sequence[int]) -> None:
        """Fill ``out`` with the elements from file offset ``start`` on."""
        axis = max(range(out.ndim), key=lambda i: strides[i] if out.shape[i] > 1 else -1)
        stride, size = strides[axis], out.shape[axis]
        span = self.itemsize + sum(
            (n - 1) * s
            for i, (n, s) in enumerate(zip(out.shape, strides, strict=True))
            if i != axis
        )
        if span > WINDOW_BYTES:
            for position in range(size):
                one = out[_along(axis, position, position + 1)]
                self._fill_inside(start + position * stride, one, strides, axis)
            return
        whole = stride <= SKIP_BYTES or stride <= 4 * span
        pitch = stride if whole else span
        step = size if pitch == 0 else min(size, (WINDOW_BYTES - span) // pitch + 1)
        staging = memoryview(bytearray((step - 1) * pitch + span))
        inner = tuple(pitch if i == axis else s for i, s in enumerate(strides))
        for position in range(0, size, step):
            part = out[_along(axis, position, min(position + step, size))]
            place = start + position * stride
            if whole:
                needed = (part.shape[axis] - 1) * pitch + span
                self.file.read_into(place, staging[:needed])
            else:
                for number in range(part.shape[axis]):
                    piece = staging[number * pitch : number * pitch + span]
                    self.file.read_into(place + number * stride, piece)
            part[...] = np.ndarray(part.shape, self._dtype, staging, strides=inner)

    def _fill_inside(self, start: int, out: _Bytes, strides: Sequence[int], axis: int) -> None:
        kept = [i for i in range(out.ndim) if i != axis]
        shape = [out.shape[i] for i in kept]
        self._fill(start, out.reshape(shape), [strides[i] for i in kept])


def _along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, stop),)


def _slab_elements(shape: Sequence[int], itemsize: int) -> int:
    """Return how many elements a slab has: as many whole sub-arrays as fit."""
    limit = max(1, SLAB_BYTES // itemsize)
    row = 1
    for size in reversed(shape):
        if row * size > limit:
            break
        row *= size
    return row * max(1, limit // row)


def boxes(
    shape: Sequence[int], first: int, last: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield (starts, sizes) of the boxes that elements ``first`` to ``last`` in C order form.

    There are at most two boxes for each dimension; ``shape`` has at least one.
    """
    inner = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    while first < last:
        axis = next(i for i, n in enumerate(inner) if first % n == 0 and last - first >= n)
        starts, rest = [], first
        for n in inner[: axis + 1]:
            position, rest = divmod(rest, n)
            starts.append(position)
        count = min((last - first) // inner[axis], shape[axis] - starts[-1])
        tail = len(shape) - axis - 1
        yield (
            (*starts, *[0] * tail),
            (*[1] * axis, count, *shape[axis + 1 :]),
        )
        first += count * inner[axis]
