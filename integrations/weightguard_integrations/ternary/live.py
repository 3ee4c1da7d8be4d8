"""Packed matrices as live tensors: the adapter by which a guard covers them.

``NAME.packed`` are the packed bytes, weights and check rows, U8 of shape [groups, bytes of a
group]; ``NAME.scale`` the scales, F32. Both are the kernel's own memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weightguard.guard import AdapterError, Hearing, LiveTensor, Token
from weightguard.tensor import DTYPES

if TYPE_CHECKING:
    from weightguard_integrations.ternary.matrix import PackedMatrix

PARTS = PACKED, SCALE = "packed", "scale"


class TernaryAdapter:
    """Reads, repairs and hears packed matrices; see ``weightguard.guard.adapter``."""

    def __init__(self, matrices: Mapping[str, PackedMatrix]):
        """``matrices`` by name. Putting another one in its place is an update of the model."""
        self._matrices = matrices

    def tensors(self) -> Sequence[LiveTensor]:
        """See Adapter; a matrix of several names is listed under the first."""
        parts = (f"{name}.{part}" for name, _ in self._once() for part in PARTS)
        return [tensor for part in parts if (tensor := self.describe(part)) is not None]

    def describe(self, name: str) -> LiveTensor | None:
        """See Adapter; the version tells one matrix from another at the same address."""
        found = self._find(name)
        if found is None:
            return None
        matrix, array = found
        dtype = DTYPES["U8" if array.dtype == np.uint8 else "F32"]
        return LiveTensor(name, dtype, array.shape, Token(array.ctypes.data, matrix.serial))

    def read(self, name: str, start: int, stop: int) -> memoryview:
        """See Adapter."""
        return self._bytes(name)[start:stop].data

    def write(self, name: str, start: int, data: bytes) -> None:
        """See Writable."""
        self._bytes(name)[start : start + len(data)] = np.frombuffer(data, np.uint8)

    def witness(self, hearing: Hearing) -> Callable[[], None]:
        """See Witness: what products of the matrices found."""
        ends = ExitStack()
        for name, matrix in self._once():
            parts = [f"{name}.{part}" for part in PARTS]
            ends.callback(matrix.witness(partial(hearing, parts)))
        return ends.close

    def _once(self) -> Iterator[tuple[str, PackedMatrix]]:
        """Yield each matrix under its first name."""
        seen: set[int] = set()
        for name, matrix in tuple(self._matrices.items()):
            if matrix.serial not in seen:
                seen.add(matrix.serial)
                yield name, matrix

    def _find(self, name: str) -> tuple[PackedMatrix, NDArray[Any]] | None:
        place, _, part = name.rpartition(".")
        matrix = self._matrices.get(place)
        if matrix is None or part not in PARTS:
            return None
        return matrix, matrix.groups if part == PACKED else matrix.scales

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        found = self._find(name)
        if found is None:
            raise AdapterError(f"there is no packed matrix {name!r:.200}")
        return found[1].reshape(-1).view(np.uint8)
