"""The smallest runtime there is: NumPy arrays multiplied by a vector, and its adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from weightguard.guard import AdapterError, Gap, LiveTensor, Token
from weightguard.tensor import DTYPES

_DTYPES = {"float32": "F32", "uint16": "BF16", "uint8": "U8", "float64": "F64"}


class ArrayRuntime:
    """Named arrays; a legitimate write counts a version, a poke does not."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        self.versions = dict.fromkeys(arrays, 0)
        self.variants = dict.fromkeys(arrays, "")
        self.hooks: list[Callable[[], None]] = []

    def run(self) -> bytes:
        """One forward pass: a digest-like sum of all bytes, after the hooks."""
        for hook in list(self.hooks):
            hook()
        return b"".join(array.tobytes() for array in self.arrays.values())


class ArrayAdapter:
    """The adapter; implements every optional protocol."""

    def __init__(self, runtime: ArrayRuntime, gaps: Sequence[Gap] = ()):
        self.runtime, self._gaps = runtime, gaps

    def tensors(self) -> Sequence[LiveTensor]:
        return [tensor for name in self.runtime.arrays if (tensor := self.describe(name))]

    def describe(self, name: str) -> LiveTensor | None:
        array = self.runtime.arrays.get(name)
        if array is None:
            return None
        token = Token(array.ctypes.data, self.runtime.versions[name], self.runtime.variants[name])
        return LiveTensor(name, DTYPES[_DTYPES[array.dtype.name]], array.shape, token)

    def read(self, name: str, start: int, stop: int) -> memoryview:
        return self._bytes(name)[start:stop].data

    def write(self, name: str, start: int, data: bytes) -> None:
        self._bytes(name)[start : start + len(data)] = np.frombuffer(data, np.uint8)

    def attach(self, before_step: Callable[[], None]) -> Callable[[], None]:
        self.runtime.hooks.append(before_step)
        return lambda: self.runtime.hooks.remove(before_step)

    def gaps(self) -> Sequence[Gap]:
        return self._gaps

    def _bytes(self, name: str) -> np.ndarray:
        array = self.runtime.arrays.get(name)
        if array is None:
            raise AdapterError(f"there is no {name!r}")
        return array.reshape(-1).view(np.uint8)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors with edges: several blocks, a short last one, one row, one byte, and nothing."""
    generator = np.random.default_rng(seed)
    return {
        "deep": generator.standard_normal((700, 900)).astype(np.float32),
        "half": generator.integers(0, 1 << 16, (300, 257), dtype=np.uint16),
        "long": generator.integers(0, 256, (1 << 20) + 5, dtype=np.uint8),
        "double": generator.standard_normal((64, 70)),
        "norm": np.ones(65, np.float32),
        "scalar": np.array(3.5, np.float32).reshape(()),
        "byte": np.array([7], np.uint8),
        "empty": np.zeros((0, 8), np.float32),
    }
