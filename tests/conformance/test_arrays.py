"""The in-memory adapter under the suite."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.arrays import ArrayAdapter, ArrayRuntime, arrays
from tests.conformance.suite import AdapterConformance
from weightguard.guard import Adapter, Gap, LiveTensor


class ArraySubject:
    def __init__(self, gaps: tuple[Gap, ...] = ()):
        self.runtime = ArrayRuntime(arrays())
        self.adapter: Adapter = ArrayAdapter(self.runtime, gaps)

    def run(self) -> bytes:
        return self.runtime.run()

    def poke(self, name: str, start: int, data: bytes) -> None:
        flat = self.runtime.arrays[name].reshape(-1).view(np.uint8)
        flat[start : start + len(data)] = np.frombuffer(data, np.uint8)

    def rewrite(self, name: str, data: bytes) -> None:
        self.poke(name, 0, data)
        self.runtime.versions[name] += 1


class ReadOnlyAdapter:
    """No more than the protocol demands."""

    def __init__(self, inner: Adapter):
        self._inner = inner

    def tensors(self):  # type: ignore[no-untyped-def]
        return self._inner.tensors()

    def describe(self, name: str) -> LiveTensor | None:
        return self._inner.describe(name)

    def read(self, name: str, start: int, stop: int) -> memoryview:
        return self._inner.read(name, start, stop)


class TestArrays(AdapterConformance):
    @pytest.fixture
    def subject(self) -> ArraySubject:
        return ArraySubject()


class TestArraysWithGaps(AdapterConformance):
    @pytest.fixture
    def subject(self) -> ArraySubject:
        return ArraySubject(
            (Gap("packed", "copied", 100, "frozen"), Gap("x", "unreachable", None, "?"))
        )


class TestReadOnly(AdapterConformance):
    @pytest.fixture
    def subject(self) -> ArraySubject:
        subject = ArraySubject()
        subject.adapter = ReadOnlyAdapter(subject.adapter)
        return subject
