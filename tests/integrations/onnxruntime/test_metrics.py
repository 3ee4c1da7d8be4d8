"""What Prometheus reads of a guarded session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from tests.integrations.onnxruntime.models import WIDTH, perceptron, saved
from weightguard.guard import MemoryMetrics, Settings
from weightguard_integrations.onnxruntime import GuardedSession
from weightguard_integrations.serving import GuardCollector

X = {"x": np.ones((1, WIDTH), np.float32)}


@pytest.mark.parametrize("mode", ["sealed", "inplace", "opaque"])
def test_a_session_is_counted(tmp_path: Path, mode: str) -> None:
    path = saved(perceptron(), tmp_path / "model")
    settings = Settings(step_bytes=1 << 20)
    session = GuardedSession(
        path, mode=mode, settings=settings, scrub=None, cache=tmp_path / "cache", canary_share=0
    )  # type: ignore[arg-type]
    metrics = session.guard.metrics
    assert isinstance(metrics, MemoryMetrics)
    registry = CollectorRegistry()
    registry.register(GuardCollector(metrics))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"weightguard_{name}", labels)

    assert value("coverage_ratio") == session.coverage().guard.ratio
    assert value("state", state="healthy") == 1
    covered = session.coverage().guard.covered
    session.run(None, X)
    if mode == "opaque":
        assert covered == value("scrub_bytes_total") == 0
        return
    assert value("scrub_bytes_total") == covered
    assert value("repairs_total") == 0
    session.adapter.write("bias", 3, b"\x7e")
    session.run(None, X)
    assert value("repairs_total") == 1
    assert value("mismatches_total", code="WG901") == 1
    assert value("state", state="healthy") == 1
    session.check()
    assert (value("last_full_pass_timestamp_seconds") or 0) > 1e9
