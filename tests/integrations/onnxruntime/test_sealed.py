"""Sealed sessions: where the bytes that run lie, that they are read, and that they are restored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from tests.integrations.onnxruntime.models import WIDTH, everything, model, perceptron, saved
from weightguard import Manifest, WeightguardError, fingerprint
from weightguard.guard import State
from weightguard_integrations.onnxruntime import GuardedSession
from weightguard_integrations.onnxruntime.mappings import accessed_pages, forget_accesses

X = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., GuardedSession]:
    def load(made: onnx.ModelProto, **more: object) -> GuardedSession:
        path = saved(made, tmp_path / "model")
        quiet = {"mode": "sealed", "canary_share": 0, "scrub": None}
        return GuardedSession(path, cache=tmp_path / "cache", **{**quiet, **more})  # type: ignore[arg-type]

    return load


def flip(session: GuardedSession, name: str, byte: int = 3, mask: int = 0x40) -> None:
    old = session.adapter.read(name, byte, byte + 1)[0]
    session.adapter.write(name, byte, bytes([old ^ mask]))


def test_every_kind_of_weight_is_covered(load: Callable[..., GuardedSession]) -> None:
    session = load(everything())
    forms = {name: region.form for name, region in session.adapter.memory.regions.items()}
    packed = {name.split("@")[0] for name, form in forms.items() if form == "packed"}
    assert packed >= {"dense", "integers", "quantised", "lstm_w", "lstm_r"}
    nested = {name.split("/")[-1] for name in packed}
    assert nested >= {"then_weight", "else_weight", "loop_weight"}
    plain = {name.split("/")[-1] for name, form in forms.items() if form == "plain"}
    assert plain >= {"embedding", "lstm_b", "then_bias", "else_bias"}
    coverage = session.coverage()
    # what stays out of reach are shapes, axes and counts, which the runtime wants in the graph
    inline = {gap.name: gap.nbytes for gap in coverage.guard.gaps}
    assert inline == {"turns": 8, "go": 1, "middle": 8, "channels": 32, "flat": 16}
    assert coverage.unreachable == sum(inline.values())
    assert coverage.live + coverage.packed == coverage.guard.covered
    assert coverage.guard.ratio > 0.999
    assert [i.code for i in session.incidents if i.code != "WG910"] == ["WG916"]


def test_flips_in_every_region_show_in_the_answers(load: Callable[..., GuardedSession]) -> None:
    """The proof from outside: not one mapped weight is a dead copy."""
    session = load(everything())
    feeds = [{"ids": np.arange(300), "choice": np.array(choice)} for choice in (True, False)]

    def answers() -> list[bytes]:
        return [session.run(None, feed)[0].tobytes() for feed in feeds]

    clean = answers()
    for tensor in session.adapter.tensors():
        whole = bytes(session.adapter.read(tensor.name, 0, tensor.nbytes))
        other = bytes(byte ^ 0x15 for byte in whole)
        session.adapter.write(tensor.name, 0, other)
        assert answers() != clean, tensor.name
        session.adapter.write(tensor.name, 0, whole)
        assert answers() == clean, tensor.name


def test_reads_show_page_by_page(load: Callable[..., GuardedSession]) -> None:
    session = load(everything())
    regions = session.adapter.memory.regions

    def read(choice: bool) -> set[str]:
        assert session._sealed is not None
        forget_accesses(session._sealed._mappings)
        session.run(None, {"ids": np.arange(2), "choice": np.array(choice)})
        return {
            name.split("/")[-1].split("@")[0]
            for name, region in regions.items()
            if accessed_pages(region.address, region.tensor.nbytes)
        }

    assert "then_weight" in read(True)
    assert "then_weight" not in read(False)
    assert "else_weight" in read(False)


def test_weights_on_branches_that_no_canary_takes_are_gaps(
    load: Callable[..., GuardedSession],
) -> None:
    made = everything()
    session = load(made, canary={"ids": np.arange(4), "choice": np.array(True)})
    gaps = {g.name.split("/")[-1]: g for g in session.coverage().guard.gaps if g.kind == "copied"}
    assert {name: gap.nbytes for name, gap in gaps.items()} == {
        "else_bias": 4 * WIDTH, "else_weight@Gemm": None
    }  # fmt: skip
    assert all("canary=" in gap.reason for gap in gaps.values())
    assert session.coverage().untaken == next(
        t.nbytes for t in session.adapter.tensors() if "else_weight@" in t.name
    )
    (said, *_) = [i.finding for i in session.incidents if i.code == "WG916"]
    assert "canary=" in said.message
    assert len(said.evidence["names"]) == 2
    assert session.status().state == State.HEALTHY.value
    # packed weights are their kernel's own: they are watched all the same
    feed = {"ids": np.arange(4), "choice": np.array(False)}
    clean = session.run(None, feed)[0]
    name = next(t.name for t in session.adapter.tensors() if "else_weight@" in t.name)
    flip(session, name)
    assert session.run_canary()
    assert not np.array_equal(session.run(None, feed)[0], clean)
    assert session.check().findings == ()
    assert np.array_equal(session.run(None, feed)[0], clean)


def test_where_every_branch_is_taken_nothing_is_untaken(
    load: Callable[..., GuardedSession],
) -> None:
    coverage = load(everything()).coverage()
    assert coverage.untaken == coverage.guard.unknown == 0


def test_damage_is_repaired_and_the_answers_return(load: Callable[..., GuardedSession]) -> None:
    session = load(perceptron())
    clean = session.run(None, X)[0]
    for tensor in session.adapter.tensors():
        flip(session, tensor.name)
        assert not np.array_equal(session.run(None, X)[0], clean)
        assert session.check().findings == ()
        assert np.array_equal(session.run(None, X)[0], clean)
    codes = [incident.code for incident in session.incidents]
    assert codes.count("WG901") == codes.count("WG907") == len(session.adapter.tensors())
    assert "WG906" not in codes, "the bytes are put right before the canary runs"
    assert session.status().state == State.HEALTHY.value


def test_what_residues_cannot_restore_comes_from_the_sealed_file(
    load: Callable[..., GuardedSession],
) -> None:
    session = load(perceptron())
    clean = session.run(None, X)[0]
    session.adapter.write("first@MatMul", 1000, bytes(range(256)) * 16)
    assert session.check().findings == ()
    assert session.incidents[-1].finding.evidence["source"] == "golden copy"
    assert np.array_equal(session.run(None, X)[0], clean)


def test_a_rebuilt_session_is_found_again(load: Callable[..., GuardedSession]) -> None:
    session = load(perceptron())
    clean, before = session.run(None, X)[0], session.adapter.memory.regions["first@MatMul"].address
    flip(session, "first@MatMul")
    session.set_providers(["CPUExecutionProvider"])
    assert session.adapter.memory.regions["first@MatMul"].address != before
    assert np.array_equal(session.run(None, X)[0], clean)
    assert session.check().findings == ()
    flip(session, "second@MatMul")
    assert session.check().findings == ()
    assert [i.code for i in session.incidents][-2:] == ["WG901", "WG907"]
    assert np.array_equal(session.run(None, X)[0], clean)
    with pytest.raises(WeightguardError, match="keeps the providers"):
        session.set_providers(["AzureExecutionProvider"])


def test_damage_right_after_a_rebuild_is_damage(load: Callable[..., GuardedSession]) -> None:
    session = load(perceptron())
    clean = session.run(None, X)[0]
    session.rebuild()
    session.adapter.write("first@MatMul", 1003, b"\x7f")
    assert session.check().findings == ()
    assert [i.code for i in session.incidents] == ["WG910", "WG901", "WG907"]
    assert np.array_equal(session.run(None, X)[0], clean)


def test_views_outlive_a_rebuilt_session(load: Callable[..., GuardedSession]) -> None:
    session = load(perceptron())
    views = []
    for _ in range(5):
        views.append(session.adapter.read("first@MatMul", 0, 1 << 16))
        session.rebuild()
    assert len({bytes(view) for view in views}) == 1


def test_sessions_of_one_model_have_their_own_memory(
    load: Callable[..., GuardedSession],
) -> None:
    one, other = load(perceptron()), load(perceptron())
    clean = other.run(None, X)[0]
    flip(one, "first@MatMul")
    assert np.array_equal(other.run(None, X)[0], clean)
    assert not np.array_equal(one.run(None, X)[0], clean)
    del one
    assert np.array_equal(other.run(None, X)[0], clean)
    assert other.check().findings == ()


def test_the_chain_is_recorded(load: Callable[..., GuardedSession], tmp_path: Path) -> None:
    manifest = fingerprint(saved(everything(), tmp_path / "model"))
    session = load(everything(), manifest=manifest)
    assert session.chain is not None
    assert session.chain.weights == manifest.document.weights
    assert session.chain.runtime == ort.__version__
    entries = session.guard.baseline.tensors
    assert entries["embedding"].attestation == "attested"
    assert entries["embedding"].record == "embedding"
    packed = [entry for name, entry in entries.items() if "@" in name]
    assert {entry.attestation for entry in packed} == {"transformed"}
    assert all("packed by onnxruntime" in entry.how for entry in packed)
    coverage = session.coverage().guard
    assert coverage.trusted == 0
    assert coverage.attested > 70_000


def test_a_manifest_from_a_file(load: Callable[..., GuardedSession], tmp_path: Path) -> None:
    path = saved(perceptron(), tmp_path / "model")
    fingerprint(path).write(tmp_path / "m.weightguard.json")
    session = load(perceptron(), manifest=tmp_path / "m.weightguard.json")
    with Manifest.read(tmp_path / "m.weightguard.json") as manifest:
        assert session.chain is not None
        assert session.chain.weights == manifest.document.weights


def test_small_weights_stay_where_the_graph_needs_them(
    load: Callable[..., GuardedSession],
) -> None:
    """Resize looks at its scales while the graph is built: they cannot leave it."""
    made = model(
        [h.make_node("Resize", ["x", "", "scales"], ["r"], mode="nearest"),
         h.make_node("Mul", ["r", "gain"], ["y"])],
        [h.make_tensor_value_info("x", T.FLOAT, ["n", 8])],
        [h.make_tensor_value_info("y", T.FLOAT, None)],
        {"scales": np.array([1, 2], np.float32), "gain": np.arange(16, dtype=np.float32) + 1},
    )  # fmt: skip
    session = load(made)
    feed = {"x": np.ones((2, 8), np.float32)}
    plain = ort.InferenceSession(made.SerializeToString())
    assert np.array_equal(session.run(None, feed)[0], plain.run(None, feed)[0])
    named = {gap.name for gap in session.coverage().guard.gaps} | set(
        session.adapter.memory.regions
    )
    assert named >= {"scales", "gain"}


def test_a_model_without_weights(load: Callable[..., GuardedSession]) -> None:
    made = model(
        [h.make_node("Tanh", ["x"], ["y"])],
        [h.make_tensor_value_info("x", T.FLOAT, ["n"])],
        [h.make_tensor_value_info("y", T.FLOAT, ["n"])],
        {},
    )
    session = load(made)
    assert session.run(None, {"x": np.zeros(3, np.float32)})[0].tolist() == [0, 0, 0]
    assert session.coverage().guard.covered == 0
    assert session.check().findings == ()
