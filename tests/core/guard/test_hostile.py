"""Runtimes that misbehave: the guard says so, goes on, and never calls it corruption."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.conformance.arrays import ArrayAdapter, ArrayRuntime
from weightguard.errors import WeightguardError
from weightguard.guard import AdapterError, Guard, Incident, Pace, Settings, State
from weightguard.guard.reactions import BURST, Limit
from weightguard.scan.digest import BLOCK_BYTES


class Hostile(ArrayAdapter):
    """An array adapter that can be told to fail."""

    fault: Exception | None = None
    short = torn = forgetful = False

    def read(self, name: str, start: int, stop: int) -> memoryview:
        if self.fault is not None:
            raise self.fault
        if self.torn:
            return memoryview(secrets.token_bytes(stop - start))
        return super().read(name, start, stop - 1 if self.short else stop)

    def write(self, name: str, start: int, data: bytes) -> None:
        if not self.forgetful:
            super().write(name, start, data)


@pytest.fixture
def adapter() -> Hostile:
    arrays = {"w": np.arange(80 * 1000, dtype=np.float32).reshape(80, 1000), "b": np.ones(9)}
    return Hostile(ArrayRuntime(arrays))


@pytest.fixture
def guard(adapter: Hostile) -> Iterator[Guard]:
    with Guard(adapter, settings=Settings(on_incident=("metrics", "repair"))) as guard:
        yield guard


def codes(guard: Guard) -> list[str]:
    return [i.code for i in guard.incidents if i.code != "WG910"]


def spoil(adapter: Hostile, index: int = 0) -> None:
    adapter.runtime.arrays["w"].view(np.uint32).reshape(-1)[index] ^= 1 << 20


@pytest.mark.parametrize("fault", [AdapterError("gone"), ValueError("boom"), MemoryError()])
def test_memory_that_cannot_be_read_is_said_once_and_forgiven(
    adapter: Hostile, guard: Guard, fault: Exception
) -> None:
    adapter.fault = fault
    for _ in range(3):
        assert not guard.check().complete
        guard.step()
    assert codes(guard) == ["WG911", "WG911"]
    assert guard.state is State.DEGRADED
    adapter.fault = None
    guard.check()
    assert guard.state is State.HEALTHY


def test_short_reads_are_no_corruption(adapter: Hostile, guard: Guard) -> None:
    adapter.short = True
    guard.check()
    assert set(codes(guard)) == {"WG911"}


def test_bytes_that_differ_at_every_look_are_in_flux(adapter: Hostile, guard: Guard) -> None:
    adapter.torn = True
    report = guard.check()
    assert not report.complete
    assert codes(guard) == []


def test_memory_that_does_not_hold_a_repair_is_given_up(adapter: Hostile, guard: Guard) -> None:
    adapter.forgetful = True
    spoil(adapter)
    guard.check()
    assert codes(guard) == ["WG901", "WG908"]
    guard.check()
    assert codes(guard) == ["WG901", "WG908"]
    spoil(adapter, 7)
    guard.check()
    assert codes(guard) == ["WG901", "WG908"] * 2, "another damage to the block is news"


def test_a_tensor_that_vanishes_changes_shape_or_comes_new(adapter: Hostile, guard: Guard) -> None:
    array = adapter.runtime.arrays.pop("b")
    assert [f.rule for f in guard.check().findings] == ["WG914"]
    adapter.runtime.arrays["b"] = array
    assert guard.check().findings == ()
    adapter.runtime.arrays["b"] = np.ones(8)
    adapter.runtime.arrays["new"] = np.ones(3)
    adapter.runtime.versions["new"], adapter.runtime.variants["new"] = 0, ""
    assert [f.rule for f in guard.check().findings] == ["WG914", "WG915"]
    del adapter.runtime.arrays["new"]
    assert [f.rule for f in guard.check().findings] == ["WG914"]
    with guard.update():
        pass
    assert guard.check().findings == ()


def test_a_write_that_is_counted_only_when_it_is_done(adapter: Hostile) -> None:
    """As PyTorch does: the bytes move first, the version afterwards."""
    runtime = adapter.runtime

    def slow_write() -> None:
        flat = runtime.arrays["w"].reshape(-1)
        for start in range(0, flat.size, flat.size // 8):
            flat[start : start + flat.size // 8] += 1
            time.sleep(0.02)
        runtime.versions["w"] += 1

    settings = Settings(on_incident=("repair",), pace=Pace(1 << 40))
    with Guard(adapter, settings=settings) as guard:
        for _ in range(3):
            writer = threading.Thread(target=slow_write)
            writer.start()
            writer.join()
        ends = time.monotonic() + 20
        while not codes(guard) and time.monotonic() < ends:
            time.sleep(0.02)
        time.sleep(0.2)
        assert codes(guard) == ["WG902"]


def test_merged_and_unmerged_adapters_are_told_apart(adapter: Hostile, guard: Guard) -> None:
    runtime = adapter.runtime
    runtime.variants["w"] = "lora-a"
    spoil(adapter)
    guard.check()
    assert codes(guard) == ["WG904"]
    runtime.variants["w"] = ""
    guard.check()  # rounding leaves a residue, say: the bytes are still others
    assert codes(guard) == ["WG904"]
    spoil(adapter)
    guard.check()
    assert guard.state is State.HEALTHY


def test_a_baseline_that_memory_damaged_judges_nobody(adapter: Hostile, guard: Guard) -> None:
    entry = guard.baseline.tensors["w"]
    entry.digests.flags.writeable = True
    entry.digests[0, 3] ^= 4
    guard.check()
    assert codes(guard) == ["WG913"]
    assert adapter.runtime.arrays["w"][0, 1] == 1


def test_a_tensor_that_is_overwritten_does_not_flood(adapter: Hostile) -> None:
    arrays = {"big": np.zeros(50 * BLOCK_BYTES, np.uint8)}
    called: list[str] = []
    settings = Settings(on_incident=(lambda incident: called.append(incident.code),))
    guard = Guard(ArrayAdapter(ArrayRuntime(arrays)), settings=settings)
    arrays["big"][::4096] = 1
    guard._rounds.scrubber._waiting._sleep = lambda seconds: None  # no need to wait 50 times
    assert len(guard.check().findings) == 50
    assert len(called) <= BURST + 2


def test_a_limit_fills_up_again() -> None:
    limit = Limit(2, per_second=1)
    assert [limit.allows(100.0) for _ in range(3)] == [True, True, False]
    assert limit.held_back == 1
    assert limit.allows(101.5)
    assert not limit.allows(101.6)


def test_names_and_messages_do_not_steer_a_log(caplog: pytest.LogCaptureFixture) -> None:
    runtime = ArrayRuntime({"w\x1b[2J\n::error": np.ones(99)})
    guard = Guard(ArrayAdapter(runtime), settings=Settings(on_incident=("log",)))
    runtime.arrays["w\x1b[2J\n::error"][3] = 2
    guard.check()
    (line,) = (r.getMessage() for r in caplog.records if "WG901" in r.getMessage())
    assert line.startswith("WG901 w\\x1b[2J\\n::error block 0: 1 row changed")
    assert caplog.records[-1].weightguard["finding"]["rule"] == "WG901"


def test_a_callback_that_exits_ends_the_process_from_the_main_thread_only(adapter: Hostile) -> None:
    def leave(incident: Incident) -> None:
        if incident.code == "WG901":
            raise SystemExit(3)

    guard = Guard(adapter, settings=Settings(on_incident=(leave, "repair")))
    spoil(adapter)
    with pytest.raises(SystemExit):
        guard.check()
    spoil(adapter)  # which puts it back
    guard.check()
    spoil(adapter, 7)
    thread = threading.Thread(target=guard.check)
    thread.start()
    thread.join()
    assert codes(guard)[-3:] == ["WG901", "WG912", "WG907"]


def test_an_unknown_reaction_is_refused(adapter: Hostile) -> None:
    with pytest.raises(WeightguardError, match="is no reaction"):
        Guard(adapter, settings=Settings(on_incident=("explode",)))  # type: ignore[arg-type]
