"""Sealed sessions of real models: every flip found and repaired, and nothing said without cause."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import onnxruntime as ort
import pytest

from tests.integrations.onnxruntime.flips import flip_and_repair, packed
from tests.integrations.onnxruntime.models import everything, saved
from tests.integrations.onnxruntime.real_onnx import REAL
from tests.integrations.onnxruntime.varied import MODES, serve
from weightguard import fingerprint
from weightguard.guard import Pace, Settings
from weightguard_integrations.onnxruntime import GuardedSession

FLIPS = 2000
RUNS = 10_000
REAL_RUNS = 48
"""Runs of each real model here; benchmarks/guard_onnxruntime.py makes 2,500."""


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest) -> Iterator[tuple[str, GuardedSession]]:
    path = REAL[request.param]()
    with tempfile.TemporaryDirectory() as cache, GuardedSession(
        path, mode="sealed", manifest=fingerprint(path), cache=cache, canary_share=0, scrub=None,
        settings=Settings(on_incident=("repair",), step_bytes=1 << 18),
    ) as session:  # fmt: skip
        yield request.param, session


@pytest.mark.proof
@pytest.mark.real
def test_every_flip_in_packed_weights_is_found_and_repaired(
    real: tuple[str, GuardedSession], claim: Callable[[str], None]
) -> None:
    name, session = real
    assert list(serve(session, name, REAL_RUNS, seed=6)) == []
    feed = session._loaded.watch._feeds[0]  # type: ignore[union-attr]
    answer = [output.tobytes() for output in session.run(None, feed)]
    assert flip_and_repair(session, FLIPS, seed=7) == FLIPS
    assert [output.tobytes() for output in session.run(None, feed)] == answer
    coverage = session.coverage()
    claim(
        f"{name}: {FLIPS} of {FLIPS} flips in {len(packed(session))} packed weights found, located "
        f"and repaired; {coverage.live + coverage.packed} live bytes covered, "
        f"{coverage.unreachable} unreachable"
    )


@pytest.mark.proof
def test_no_false_alarm_in_varied_runs(tmp_path: Path, claim: Callable[[str], None]) -> None:
    path = saved(everything(), tmp_path / "model")
    for seed, (threads, mode) in enumerate(MODES):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        with GuardedSession(
            path, options, mode=mode, manifest=fingerprint(path, file_digests=True),
            cache=tmp_path / "cache",
            settings=Settings(on_incident=(), step_bytes=1 << 15, pace=Pace(rate=200 << 20)),
        ) as session:  # fmt: skip
            assert list(serve(session, "everything", RUNS // len(MODES), seed)) == []
    claim(f"0 false alarms in {RUNS} runs of varied shapes, threads and bindings")
