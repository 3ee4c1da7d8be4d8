"""The gate: checks together, updates alone, and nobody waits for himself."""

from __future__ import annotations

import threading
import time

import pytest

from weightguard.guard.gate import Gate


def test_checks_enter_together_and_an_update_waits_for_them() -> None:
    gate, order = Gate(), []
    with gate.check() as first, gate.check() as second:
        assert first
        assert second

        def update() -> None:
            with gate.closed():
                order.append("update")

        thread = threading.Thread(target=update)
        thread.start()
        time.sleep(0.05)
        order.append("checks end")
    thread.join(5)
    assert order == ["checks end", "update"]


def test_a_closed_gate_lets_nobody_in_and_opens_again() -> None:
    gate = Gate()
    with gate.closed(), gate.check() as let_in:
        assert not let_in
    with gate.check() as let_in:
        assert let_in


def test_updates_come_one_after_the_other() -> None:
    gate, inside, most = Gate(), [0], [0]

    def update() -> None:
        for _ in range(50):
            with gate.closed():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=update) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1]


def test_waiting_for_oneself_is_refused() -> None:
    gate = Gate()
    with gate.closed(), pytest.raises(RuntimeError, match="within an update"):
        gate.closed().__enter__()
    with gate.check(), pytest.raises(RuntimeError, match="within a check"):
        gate.closed().__enter__()
    with gate.closed():
        pass
