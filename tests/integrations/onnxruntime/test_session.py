"""A guarded session in place of an InferenceSession: every way to run, options, threads, ends."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.integrations.onnxruntime.models import WIDTH, everything, perceptron, saved
from weightguard import IntegrityError, WeightguardError, fingerprint
from weightguard.guard import Pace, Settings
from weightguard_integrations.onnxruntime import GuardedSession
from weightguard_integrations.onnxruntime.options import Recipe

MODES = ("sealed", "inplace", "opaque")
X = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}


@pytest.fixture(params=MODES)
def session(request: pytest.FixtureRequest, tmp_path: Path) -> GuardedSession:
    path = saved(perceptron(), tmp_path / "model")
    return GuardedSession(path, mode=request.param, cache=tmp_path / "cache")


@pytest.fixture
def sealed(tmp_path: Path) -> Callable[..., GuardedSession]:
    path = saved(perceptron(), tmp_path / "model")
    quiet = {"mode": "sealed", "cache": tmp_path / "cache", "scrub": None}
    return lambda **more: GuardedSession(path, **{**quiet, **more})


def test_it_is_an_inference_session(session: GuardedSession) -> None:
    assert isinstance(session, ort.InferenceSession)
    (node,) = session.get_inputs()
    assert (node.name, node.type, node.shape) == ("x", "tensor(float)", ["n", WIDTH])
    assert [output.name for output in session.get_outputs()] == ["y"]
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.get_modelmeta().graph_name == "g"


def test_every_way_to_run(session: GuardedSession) -> None:
    expected = session.run(["y"], X)[0]
    binding = session.io_binding()
    binding.bind_cpu_input("x", X["x"])
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    assert np.array_equal(binding.copy_outputs_to_cpu()[0], expected)
    value = ort.OrtValue.ortvalue_from_numpy(X["x"])
    (answer,) = session.run_with_ort_values(["y"], {"x": value})
    assert np.array_equal(answer.numpy(), expected)
    done, got = threading.Event(), []

    def take(results: list[np.ndarray], _: object, error: str) -> None:
        got.extend([results, error])
        done.set()

    session.run_async(["y"], X, take, None)
    assert done.wait(30)
    assert np.array_equal(got[0][0], expected)
    assert got[1] == ""


def test_every_way_to_run_pays_for_checks(session: GuardedSession) -> None:
    steps = []
    session.adapter.attach(lambda: steps.append(1))
    value = ort.OrtValue.ortvalue_from_numpy(X["x"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", X["x"])
    binding.bind_output("y")
    done = threading.Event()
    session.run(None, X)
    session.run_with_iobinding(binding)
    session.run_with_ort_values(["y"], {"x": value})
    session.run_async(["y"], X, lambda *_: done.set(), None)
    assert done.wait(30)
    assert len(steps) == 4


def test_a_step_budget_finds_damage_while_serving(sealed: Callable[..., GuardedSession]) -> None:
    session = sealed(settings=Settings(step_bytes=1 << 16), canary_share=0)
    clean = session.run(None, X)[0]
    session.adapter.write("bias", 3, b"\x7e")
    for _ in range(2 * len(session.adapter.tensors())):
        session.run(None, X)
    assert [i.code for i in session.incidents][1:] == ["WG901", "WG907"]
    assert np.array_equal(session.run(None, X)[0], clean)


def test_the_background_thread_finds_damage(sealed: Callable[..., GuardedSession]) -> None:
    settings = Settings(pace=Pace(rate=100 << 20, slice=1 << 20))
    with sealed(settings=settings, canary_share=0) as session:
        clean = session.run(None, X)[0]
        session.adapter.write("bias", 3, b"\x7e")
        for _ in range(400):
            if session.guard.status().incidents >= 3:
                break
            threading.Event().wait(0.01)
        assert np.array_equal(session.run(None, X)[0], clean)


def test_raise_and_quarantine(sealed: Callable[..., GuardedSession]) -> None:
    session = sealed(settings=Settings(on_incident=("quarantine", "raise")), canary_share=0)
    session.adapter.write("bias", 3, b"\x7e")
    report = session.check()
    assert {f.rule for f in report.findings} == {"WG901", "WG906"}
    assert not session.status().ready
    with pytest.raises(IntegrityError):
        session.run(None, X)


def test_threads_share_a_session(sealed: Callable[..., GuardedSession]) -> None:
    session = sealed(settings=Settings(step_bytes=1 << 20, pace=Pace(rate=200 << 20)))
    expected = session.run(None, X)[0]
    wrong: list[object] = []

    def serve() -> None:
        for _ in range(100):
            if not np.array_equal(session.run(None, X)[0], expected):
                wrong.append(1)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        session.rebuild()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert session.check().findings == ()
    assert [i.code for i in session.incidents] == ["WG910"]
    session.close()


def test_a_closed_session_does_not_run(session: GuardedSession) -> None:
    session.run(None, X)
    with session:
        assert session.status().ready
    uses = (lambda: session.run(None, X), session.rebuild, session.check, session.run_canary)
    for use in uses:
        with pytest.raises(WeightguardError, match="closed"):
            use()
    assert (session.status().state, session.status().ready) == ("closed", False)
    session.close()


@pytest.mark.parametrize("mode", ["sealed", "inplace"])
def test_a_session_by_default_repairs_its_weights_by_itself(tmp_path: Path, mode: str) -> None:
    path = saved(everything(), tmp_path / "model")
    session = GuardedSession(path, mode=mode, cache=tmp_path / "cache", canary_share=0)  # type: ignore[arg-type]
    sound = bytes(session.adapter.read("embedding", 0, 4096))
    session.adapter.write("embedding", 1003, b"\x7e")
    for _ in range(1000):
        if "WG907" in [incident.code for incident in session.incidents]:
            break
        threading.Event().wait(0.02)
    assert [i.code for i in session.incidents][-2:] == ["WG901", "WG907"]
    assert session.incidents[-2].tensor == "embedding"
    assert bytes(session.adapter.read("embedding", 0, 4096)) == sound
    session.close()


def test_scrubbing_is_what_was_asked_for(sealed: Callable[..., GuardedSession]) -> None:
    def asked(**more: object) -> tuple[int | None, int]:
        settings = sealed(**more).guard.settings
        return settings.pace and settings.pace.rate, settings.step_bytes

    assert asked(scrub="2MB/s", step_budget="1MiB") == (2_000_000, 1 << 20)
    assert asked(scrub=None) == (None, 0)
    assert asked(scrub=7, settings=Settings(threads=2)) == (7, 0)
    own = Settings(pace=Pace(rate=5), step_bytes=3)
    assert asked(scrub=7, step_budget=9, settings=own) == (5, 3)
    assert asked(scrub=7, mode="opaque") == (None, 0), "there is nothing to scrub"
    with pytest.raises(WeightguardError, match="a rate such as 500MB/s"):
        sealed(scrub="fast")


@pytest.mark.parametrize("settings", [Settings(), Settings(pace=Pace(rate=1 << 20))])
def test_a_forked_child_may_let_go_of_a_session(
    sealed: Callable[..., GuardedSession], settings: Settings
) -> None:
    """onnxruntime waits for the threads of a session that ends, and a child has not got them."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 3
    session, gone = (sealed(sess_options=options, settings=settings) for _ in range(2))
    session.run(None, X)
    gone.rebuild()
    gc.disable()  # a guard with a thread is garbage of which the runtime's session hangs
    del gone
    threading.Event().wait(0.3)  # until the threads have stopped spinning and wait
    child = os.fork()
    if child == 0:
        del session
        gc.collect()
        os._exit(0)
    gc.enable()
    for _ in range(3000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.02)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_session_that_goes_gives_its_memory_back(
    sealed: Callable[..., GuardedSession],
) -> None:
    session = sealed(settings=Settings(step_bytes=1 << 20))
    session.run(None, X)
    runtime = weakref.ref(session._sess)
    del session
    assert runtime() is None
    paced = sealed(settings=Settings(pace=Pace(rate=1 << 20)))
    runtime = weakref.ref(paced._sess)
    threads = threading.active_count()
    del paced
    gc.collect()
    assert runtime() is None
    assert threading.active_count() == threads - 1


def test_it_is_not_pickled(session: GuardedSession) -> None:
    with pytest.raises(TypeError, match="in each process"):
        pickle.dumps(session)


def test_what_is_not_sealed_is_not_rebuilt(session: GuardedSession) -> None:
    if session.mode != "sealed":
        with pytest.raises(WeightguardError, match="make a new one"):
            session.rebuild()


def test_sealed_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    session = GuardedSession(saved(perceptron(), tmp_path / "model"))
    assert session.mode == "sealed"
    assert (tmp_path / "weightguard" / "onnxruntime").is_dir()


def test_an_unknown_mode_is_refused(sealed: Callable[..., GuardedSession], tmp_path: Path) -> None:
    with pytest.raises(WeightguardError, match="choose of sealed, inplace, opaque"):
        GuardedSession(tmp_path / "model" / "model.onnx", mode="seald")  # type: ignore[arg-type]


def test_a_sealed_model_that_changed_is_not_rebuilt(
    sealed: Callable[..., GuardedSession], tmp_path: Path
) -> None:
    session = sealed()
    clean = session.run(None, X)[0]
    (data,) = (tmp_path / "cache").glob("*/weights.data")
    nbytes = data.stat().st_size
    data.unlink()
    data.write_bytes(b"\x55" * nbytes)
    data.chmod(0o600)
    with pytest.raises(WeightguardError, match="changed since it was loaded"):
        session.rebuild()
    data.unlink()
    with pytest.raises(WeightguardError, match="changed since it was loaded"):
        session.rebuild()
    assert np.array_equal(session.run(None, X)[0], clean), "the session there was goes on"


def test_options_are_copied_and_left_alone(sealed: Callable[..., GuardedSession]) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = sealed(sess_options=options)
    used = session.get_session_options()
    assert used.intra_op_num_threads == 1
    assert used.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert used.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.optimized_model_filepath == ""
    with pytest.raises(RuntimeError):
        options.get_session_config_entry("session.model_external_initializers_file_folder_path")
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def test_options_that_write_models_are_refused(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "out.onnx")
    with pytest.raises(WeightguardError, match="optimized_model_filepath"):
        Recipe(options)


def test_options_may_be_made_anew(sealed: Callable[..., GuardedSession]) -> None:
    made = []

    def make() -> ort.SessionOptions:
        made.append(ort.SessionOptions())
        made[-1].add_free_dimension_override_by_name("n", 3)
        return made[-1]

    session = sealed(sess_options=make, variant="n=3")
    assert len(made) > 1
    assert session.get_inputs()[0].shape[1] == WIDTH
    assert session.run(None, X)


def test_packing_turned_off_leaves_weights_live_in_place(tmp_path: Path) -> None:
    path = saved(perceptron(), tmp_path / "model")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")
    manifest = fingerprint(path)
    live = GuardedSession(path, options, mode="inplace", manifest=manifest).coverage()
    packed = GuardedSession(path, mode="inplace", manifest=manifest).coverage()
    assert (live.guard.attested, live.unreachable) == (131_328, 0)
    assert packed.unreachable == 131_072
    assert {gap.kind for gap in packed.guard.gaps} == {"copied"}


def test_in_place_says_what_it_does_not_reach(tmp_path: Path) -> None:
    path = saved(everything(), tmp_path / "model", external=2)
    session = GuardedSession(path, mode="inplace", manifest=fingerprint(path))
    kinds = {gap.name.split("/")[-1]: gap.kind for gap in session.coverage().guard.gaps}
    assert kinds["then_weight"] == kinds["loop_weight"] == "unreachable"
    assert kinds["integers"] == "copied"
    assert "embedding" not in kinds
    assert session.guard.baseline.tensors["embedding"].attestation == "attested"
