"""Sealed sessions of real models: every flip found and repaired, and nothing said without cause."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.integrations.onnxruntime.models import everything, saved
from tests.integrations.onnxruntime.real_onnx import REAL
from weightguard import fingerprint
from weightguard.guard import LiveTensor, Pace, Settings
from weightguard.scan.digest import BLOCK_BYTES
from weightguard_integrations.onnxruntime import GuardedSession

FLIPS = 2000
PER_BLOCK = 16
"""Rows of a block that are damaged at once: as many as one incident lists."""
RUNS = 10_000


@pytest.fixture(scope="module", params=REAL)
def real(request: pytest.FixtureRequest) -> Iterator[tuple[str, GuardedSession]]:
    path = REAL[request.param]()
    with tempfile.TemporaryDirectory() as cache, GuardedSession(
        path, mode="sealed", manifest=fingerprint(path), cache=cache, canary_share=0,
        settings=Settings(on_incident=("repair",)),
    ) as session:  # fmt: skip
        yield request.param, session


def packed(session: GuardedSession) -> list[LiveTensor]:
    regions = session._memory.regions.values()
    return [region.tensor for region in regions if region.form == "packed"]


def drawn(tensors: list[LiveTensor], count: int, generator: np.random.Generator):  # type: ignore[no-untyped-def]
    """Return bits to flip, at most PER_BLOCK a block, no two in a row of it."""
    weights = np.array([tensor.nbytes for tensor in tensors], float)
    chosen: dict[tuple[str, int], set[int]] = {}
    bits = []
    blocks = sum(-(-tensor.nbytes // BLOCK_BYTES) for tensor in tensors)
    for _ in range(min(20 * count, 4 * PER_BLOCK * blocks)):
        tensor = tensors[generator.choice(len(tensors), p=weights / weights.sum())]
        bit = int(generator.integers(8 * tensor.nbytes))
        rows = chosen.setdefault((tensor.name, bit // 8 // BLOCK_BYTES), set())
        row = bit // 8 // tensor.layout.row_bytes
        if row not in rows and len(rows) < PER_BLOCK:
            rows.add(row)
            bits.append((tensor, bit))
            if len(bits) == count:
                break
    return bits


@pytest.mark.proof
@pytest.mark.real
def test_every_flip_in_packed_weights_is_found_and_repaired(
    real: tuple[str, GuardedSession], claim: Callable[[str], None]
) -> None:
    name, session = real
    generator = np.random.default_rng(7)
    tensors = packed(session)
    feed = session._watch._feeds[0]  # type: ignore[union-attr]
    answer = [output.tobytes() for output in session.run(None, feed)]
    clean = {t.name: bytes(session.adapter.read(t.name, 0, t.nbytes)) for t in tensors}
    flipped = found = 0
    while flipped < FLIPS:
        bits = drawn(tensors, FLIPS - flipped, generator)
        for tensor, bit in bits:
            old = session.adapter.read(tensor.name, bit // 8, bit // 8 + 1)[0]
            session.adapter.write(tensor.name, bit // 8, bytes([old ^ 1 << bit % 8]))
        before = len(session.incidents)
        assert session.guard.check().findings == ()
        located = Counter(
            (incident.tensor, element["index"][0] * row_bytes(session, incident.tensor)
             + element["index"][-1] * (len(element["index"]) > 1), element["flipped_bits"][0])
            for incident in session.incidents[before:]
            if incident.code == "WG901"
            for element in incident.finding.evidence["elements"]
            if element["confirmed"]
        )  # fmt: skip
        expected = Counter(place(tensor, bit) for tensor, bit in bits)
        assert located == expected
        flipped, found = flipped + len(bits), found + located.total()
    for tensor in tensors:
        assert bytes(session.adapter.read(tensor.name, 0, tensor.nbytes)) == clean[tensor.name]
    assert [output.tobytes() for output in session.run(None, feed)] == answer
    coverage = session.coverage()
    claim(
        f"{name}: {found} of {flipped} flips in {len(tensors)} packed weights found, located and "
        f"repaired; {coverage.live + coverage.packed} live bytes covered, "
        f"{coverage.unreachable} unreachable"
    )


def row_bytes(session: GuardedSession, name: str | None) -> int:
    tensor = session.adapter.describe(name or "")
    assert tensor is not None
    return tensor.shape[-1] if len(tensor.shape) > 1 else 1


def place(tensor: LiveTensor, bit: int) -> tuple[str, int, int]:
    return tensor.name, bit // 8, bit % 8


@pytest.mark.proof
def test_no_false_alarm_in_varied_runs(tmp_path: Path, claim: Callable[[str], None]) -> None:
    path = saved(everything(), tmp_path / "model")
    generator = np.random.default_rng(8)
    runs = 0
    for threads, mode in ((1, "sealed"), (2, "sealed"), (2, "inplace"), (2, "opaque")):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        with GuardedSession(
            path, options, mode=mode, manifest=fingerprint(path, file_digests=True),
            cache=tmp_path / "cache",
            settings=Settings(on_incident=(), step_bytes=1 << 15, pace=Pace(rate=200 << 20)),
        ) as session:  # fmt: skip
            for turn in range(RUNS // 4):
                feed = {
                    "ids": generator.integers(0, 300, generator.integers(1, 17)),
                    "choice": np.array(bool(generator.integers(2))),
                }
                run_somehow(session, feed, turn)
                runs += 1
            assert session.check().findings == ()
            assert {incident.code for incident in session.incidents} <= {"WG916"}
    claim(f"0 false alarms in {runs} runs of varied shapes, threads and bindings")


def run_somehow(session: GuardedSession, feed: dict[str, np.ndarray], turn: int) -> None:
    if turn % 3 == 0:
        session.run(None, feed)
    elif turn % 3 == 1:
        binding = session.io_binding()
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
    else:
        values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feed.items()}
        session.run_with_ort_values(["y"], values)
