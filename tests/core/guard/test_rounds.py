"""Rounds: a forward pass pays for what the background thread did not check since the last one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.arrays import ArrayAdapter, ArrayRuntime
from weightguard.guard import Guard, Settings
from weightguard.guard.metrics import SCRUB_BYTES

MIB = 1 << 20


@pytest.mark.parametrize(("beside", "paid"), [(0, 4), (1, 3), (4, 0), (9, 0)])
def test_a_step_pays_for_what_nobody_else_checked(beside: int, paid: int) -> None:
    adapter = ArrayAdapter(ArrayRuntime({"weight": np.zeros((20, MIB), np.uint8)}))
    guard = Guard(adapter, settings=Settings(on_incident=(), step_bytes=4 * MIB))
    for _ in range(3):
        before = guard.metrics.value(SCRUB_BYTES)  # type: ignore[attr-defined]
        if beside:
            guard.scrub(beside * MIB)
        guard.step()
        checked = guard.metrics.value(SCRUB_BYTES) - before  # type: ignore[attr-defined]
        assert checked == (beside + paid) * MIB


@pytest.mark.parametrize(("beside", "free"), [(12, 3), (14, 3), (900, 9)])
def test_what_was_checked_beside_pays_for_a_few_steps_and_no_more(beside: int, free: int) -> None:
    adapter = ArrayAdapter(ArrayRuntime({"weight": np.zeros((1000, MIB), np.uint8)}))
    guard = Guard(adapter, settings=Settings(on_incident=(), step_bytes=4 * MIB))
    guard.scrub(beside * MIB)
    paid = []
    for _ in range(free + 1):
        before = guard.metrics.value(SCRUB_BYTES)  # type: ignore[attr-defined]
        guard.step()
        paid.append(guard.metrics.value(SCRUB_BYTES) - before)  # type: ignore[attr-defined]
    assert paid == [0] * free + [4 * MIB - min(beside, 36) % 4 * MIB]
