"""Mending: what two checks found at once is put right by one of them, and no failure."""

from __future__ import annotations

import numpy as np

from tests.conformance.arrays import ArrayAdapter, ArrayRuntime
from weightguard.guard import Guard, Settings
from weightguard.guard.mend import Mender


def test_a_block_that_another_check_restored_is_mended() -> None:
    adapter = ArrayAdapter(ArrayRuntime({"weight": np.arange(4096, dtype=np.float32)}))
    guard = Guard(adapter, settings=Settings(on_incident=()))
    entry = guard.baseline.tensors["weight"]
    (ref,) = guard._rounds.scrubber.schedule
    held, found = Mender(adapter, guard._key, None).attempt(entry, ref)
    assert held
    assert (found.rule, found.evidence) == ("WG907", {"source": "other check", "writes": 0})
    assert "by another check" in found.message
