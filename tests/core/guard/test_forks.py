"""Children forked while weights are updated: what was begun elsewhere has failed there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np

from tests.conformance.arrays import ArrayAdapter, ArrayRuntime
from weightguard.guard import Guard, Settings, State


def runtime() -> ArrayRuntime:
    return ArrayRuntime({"w": np.arange(9000, dtype=np.float32).reshape(30, 300)})


def overwrite(model: ArrayRuntime) -> None:
    model.arrays["w"][7] += 1
    model.versions["w"] += 1


def in_child(act: Callable[[], bool]) -> bool:
    """Return what ``act`` returns in a forked child."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if act() else 1)
        finally:
            os._exit(2)  # the child must never go on as a second test run
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def test_another_threads_update_has_failed_in_a_child() -> None:
    model = runtime()
    guard = Guard(ArrayAdapter(model), settings=Settings(on_incident=()))
    began, end = threading.Event(), threading.Event()

    def update() -> None:
        with guard.update():
            overwrite(model)
            began.set()
            end.wait(20)

    thread = threading.Thread(target=update)
    thread.start()
    assert began.wait(20)

    def as_before() -> bool:
        assert (guard.state, guard.ready) == (State.HEALTHY, True)
        assert [found.rule for found in guard.check().findings] == ["WG902"]
        with guard.update():
            pass
        return guard.state is State.HEALTHY and guard.check().findings == ()

    assert in_child(as_before)
    assert guard.state is State.SEALING
    end.set()
    thread.join(20)
    assert (guard.state, guard.check().findings) == (State.HEALTHY, ())


def test_a_child_of_the_updating_thread_ends_the_update_itself() -> None:
    model = runtime()
    guard = Guard(ArrayAdapter(model), settings=Settings(on_incident=()))

    def ended() -> bool:
        return guard.state is State.HEALTHY and guard.check().findings == ()

    with guard.update():
        overwrite(model)
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if ended() else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert ended()


def test_a_closed_guard_is_not_ready_in_a_child_either() -> None:
    guard = Guard(ArrayAdapter(runtime()), settings=Settings(on_incident=()))
    guard.close()
    assert in_child(lambda: (guard.standing, guard.ready) == ("closed", False))
