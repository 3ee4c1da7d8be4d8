"""One flip is one incident, though several checks look at it at the same time."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.conformance.arrays import ArrayAdapter, ArrayRuntime
from weightguard.guard import Guard, Settings, State
from weightguard.guard import casebook as casebook_module


class Meeting(ArrayAdapter):
    """Once armed, lets another check pass by while the first one has just read a block."""

    def __init__(self, runtime: ArrayRuntime):
        super().__init__(runtime)
        self.armed_after: int | None = None
        self.meanwhile = lambda: None
        self._reads = 0

    def read(self, name: str, start: int, stop: int) -> memoryview:
        seen = memoryview(bytes(super().read(name, start, stop)))
        self._reads += 1
        if self._reads == self.armed_after:
            self._pass_by()
        return seen

    def arm(self, after: int) -> None:
        self._reads, self.armed_after = 0, after

    def _pass_by(self) -> None:
        self.armed_after = None
        other = threading.Thread(target=self.meanwhile)
        other.start()
        other.join(20)


@pytest.fixture
def adapter() -> Meeting:
    weights = np.random.default_rng(1).standard_normal((40, 300)).astype(np.float32)
    return Meeting(ArrayRuntime({"w": weights}))


def flip(adapter: Meeting) -> None:
    adapter.runtime.arrays["w"].view(np.uint32)[3, 5] ^= 1 << 20


def codes(guard: Guard) -> list[str]:
    return [incident.code for incident in guard.incidents if incident.code != "WG910"]


@pytest.mark.parametrize("reads", [1, 2, 3])
def test_a_flip_that_two_checks_see_is_one_incident(adapter: Meeting, reads: int) -> None:
    """The other check finds and repairs it between any two readings of this one."""
    guard = Guard(adapter, settings=Settings(on_incident=("repair",)))
    adapter.meanwhile = guard.check
    flip(adapter)
    adapter.arm(reads)
    guard.check()
    assert codes(guard) == ["WG901", "WG907"]
    assert guard.state is State.HEALTHY
    flip(adapter)
    assert guard.check().findings == ()
    assert codes(guard) == ["WG901", "WG907"] * 2, "the same flip later is another incident"


def test_a_check_that_read_before_the_flip_closes_no_case(adapter: Meeting) -> None:
    guard = Guard(adapter, settings=Settings(on_incident=()))

    def meanwhile() -> None:
        flip(adapter)
        guard.check()

    adapter.meanwhile = meanwhile
    adapter.arm(1)
    guard.check()
    assert codes(guard) == ["WG901"]
    assert guard.state is State.DEGRADED
    guard.repair(guard.incidents[-1])
    assert guard.state is State.HEALTHY
    assert codes(guard) == ["WG901", "WG907"]


def test_a_place_that_is_forgotten_is_but_said_twice(
    adapter: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casebook_module, "MAX_MOVED", 0)
    guard = Guard(adapter, settings=Settings(on_incident=("repair",)))
    adapter.meanwhile = guard.check
    flip(adapter)
    adapter.arm(3)
    guard.check()
    assert codes(guard) == ["WG901", "WG907", "WG901", "WG907"]
    assert guard.state is State.HEALTHY
