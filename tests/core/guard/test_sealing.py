"""Damage found at sealing: what is healed, what is left alone, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.arrays import ArrayRuntime
from tests.conformance.suite import Copy, attested, live_bytes
from tests.core.guard.test_hostile import Hostile, codes
from weightguard import Manifest, WeightguardError
from weightguard.guard import Guard, Settings, State

REPAIR = Settings(on_incident=("metrics", "repair"))


@pytest.fixture
def adapter() -> Hostile:
    generator = np.random.default_rng(5)
    return Hostile(
        ArrayRuntime(
            {
                "w": generator.standard_normal((800, 900)).astype(np.float32),
                "v": generator.standard_normal((60, 70)),
                "norm": np.ones(300, np.float32),
            }
        )
    )


@pytest.fixture
def manifest(adapter: Hostile, tmp_path: Path) -> Iterator[Manifest]:
    with attested(adapter, tmp_path) as manifest:
        yield manifest


def bits(adapter: Hostile, name: str) -> np.ndarray:
    return adapter.runtime.arrays[name].reshape(-1).view(np.uint32)


def test_flips_in_many_rows_and_blocks_are_healed_from_the_manifest_alone(
    adapter: Hostile, manifest: Manifest
) -> None:
    clean = live_bytes(adapter)
    bits(adapter, "w")[:: 900 * 7 + 1] ^= 1 << 30
    bits(adapter, "norm")[17] ^= 1
    guard = Guard(adapter, manifest, REPAIR)
    assert live_bytes(adapter) == clean
    assert codes(guard) == ["WG401", "WG907", "WG907", "WG907", "WG401", "WG907"]
    assert {e.attestation for e in guard.baseline.tensors.values()} == {"attested"}
    assert guard.state is State.HEALTHY
    assert guard.check().findings == ()


def test_one_row_is_never_taken_from_a_golden_copy(adapter: Hostile, manifest: Manifest) -> None:
    golden = Copy(live_bytes(adapter))
    bits(adapter, "norm")[5:9] ^= 1
    changed = live_bytes(adapter)
    guard = Guard(adapter, manifest, REPAIR, golden=golden)
    assert codes(guard) == ["WG401"]
    assert live_bytes(adapter) == changed


def test_a_golden_copy_of_something_else_is_never_written(
    adapter: Hostile, manifest: Manifest
) -> None:
    zeros = {name: bytes(len(data)) for name, data in live_bytes(adapter).items()}
    bits(adapter, "w")[100:104] ^= 1
    changed = live_bytes(adapter)
    guard = Guard(adapter, manifest, REPAIR, golden=Copy(zeros))
    assert codes(guard) == ["WG401"]
    assert live_bytes(adapter) == changed


def test_memory_that_does_not_hold_the_repair_leaves_the_model_degraded(
    adapter: Hostile, manifest: Manifest
) -> None:
    adapter.forgetful = True
    bits(adapter, "w")[3] ^= 1 << 20
    guard = Guard(adapter, manifest, REPAIR)
    assert codes(guard) == ["WG401", "WG908"]
    assert guard.incidents[-1].cause == 1
    assert guard.state is State.DEGRADED


def test_nothing_is_written_with_the_manifest_of_another_model(
    adapter: Hostile, manifest: Manifest
) -> None:
    for name in adapter.runtime.arrays:
        bits(adapter, name)[0] ^= 1
    changed = live_bytes(adapter)
    with pytest.raises(WeightguardError, match="another model"):
        Guard(adapter, manifest, REPAIR)
    assert live_bytes(adapter) == changed
