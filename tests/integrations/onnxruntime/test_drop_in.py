"""In place of an InferenceSession: each public method works as onnxruntime's, or says why not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as states

from tests.integrations.onnxruntime.models import WIDTH, perceptron, saved
from weightguard import WeightguardError
from weightguard_integrations.onnxruntime import GuardedSession

MODES = ("sealed", "inplace", "opaque")
X = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}
Session = ort.InferenceSession


def value() -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(X["x"])


def bound(session: Session) -> list[Any]:
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", value())
    binding.bind_output("y")
    session.run_with_iobinding(binding, ort.RunOptions())
    return binding.copy_outputs_to_cpu()


def asynchronous(session: Session) -> list[Any]:
    done, got = threading.Event(), []

    def take(results: list[Any], data: object, error: str) -> None:
        got.append((results, data, error))
        done.set()

    session.run_async(["y"], X, take, "mine", ort.RunOptions())
    assert done.wait(60)
    ((results, data, error),) = got
    assert (data, error) == ("mine", "")
    return list(results)


def vectors(session: Session) -> list[Any]:
    feeds, fetches = states.OrtValueVector(), states.OrtValueVector()
    feeds.push_back(value()._get_c_value())
    device = states.OrtDevice(states.OrtDevice.cpu(), states.OrtDevice.default_memory(), 0)
    session.run_with_ortvaluevector(ort.RunOptions(), ["x"], feeds, ["y"], fetches, [device])
    return [fetches[0].numpy()]


def described(nodes: Any) -> list[Any]:
    return [(node.name, node.type, node.shape) for node in nodes]


def memories(found: Any) -> list[str]:
    return [str(info.name) for info in found]


def meta(session: Session) -> dict[str, Any]:
    found = session.get_modelmeta()
    return {name: getattr(found, name) for name in dir(found) if not name.startswith("_")}


WORKS: dict[str, Callable[[Session], Any]] = {
    "create_ortvalue_from_shape_and_type": lambda s: s.create_ortvalue_from_shape_and_type(
        [2, 3], np.float32, "cpu"
    ).shape(),
    "disable_fallback": lambda s: s.disable_fallback(),
    "end_profiling": lambda s: s.end_profiling(),
    "get_input_epdevices": lambda s: len(s.get_input_epdevices()),
    "get_input_memory_infos": lambda s: memories(s.get_input_memory_infos()),
    "get_inputs": lambda s: described(s.get_inputs()),
    "get_modelmeta": meta,
    "get_output_memory_infos": lambda s: memories(s.get_output_memory_infos()),
    "get_outputs": lambda s: described(s.get_outputs()),
    "get_overridable_initializers": lambda s: described(s.get_overridable_initializers()),
    "get_profiling_start_time_ns": lambda s: s.get_profiling_start_time_ns() >= 0,
    "get_provider_graph_assignment_info": lambda s: [
        found.ep_name for found in s.get_provider_graph_assignment_info()
    ],
    "get_provider_options": lambda s: s.get_provider_options(),
    "get_providers": lambda s: s.get_providers(),
    "get_session_options": lambda s: s.get_session_options().intra_op_num_threads,
    "get_tuning_results": lambda s: s.get_tuning_results(),
    "io_binding": lambda s: type(s.io_binding()),
    "release_captured_graph": lambda s: s.release_captured_graph(),
    "run": lambda s: s.run(["y"], X, ort.RunOptions()),
    "run_async": asynchronous,
    "run_with_iobinding": bound,
    "run_with_ort_values": lambda s: [
        answer.numpy() for answer in s.run_with_ort_values(["y"], {"x": value()}, ort.RunOptions())
    ],
    "run_with_ortvaluevector": vectors,
    "set_ep_dynamic_options": lambda s: s.set_ep_dynamic_options({"ep.dynamic": "1"}),
    "set_tuning_results": lambda s: s.set_tuning_results([]),
}
REFUSED: dict[str, Callable[[Session], Any]] = {
    "enable_fallback": lambda s: s.enable_fallback(),
    "set_providers": lambda s: s.set_providers(["AzureExecutionProvider"]),
}


def options() -> ort.SessionOptions:
    made = ort.SessionOptions()
    made.intra_op_num_threads = 2
    made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return made


@pytest.fixture(params=MODES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[GuardedSession, Session]:
    path = saved(perceptron(), tmp_path / "model")
    guarded = GuardedSession(path, options(), mode=request.param, cache=tmp_path / "cache")
    return guarded, Session(path, options())


def test_every_public_method_is_looked_at() -> None:
    public = {name for name in dir(Session) if not name.startswith("_")}
    assert public == WORKS.keys() | REFUSED.keys()


def test_each_answers_as_a_plain_session_does(pair: tuple[GuardedSession, Session]) -> None:
    guarded, plain = pair
    for name, call in WORKS.items():
        got, expected = call(guarded), call(plain)
        if name.startswith("run"):
            assert np.allclose(got[0], expected[0], atol=1e-5), name
        else:
            assert got == expected, name
    assert guarded.check().findings == ()


def test_what_is_refused_says_why(pair: tuple[GuardedSession, Session]) -> None:
    for name, call in REFUSED.items():
        with pytest.raises(WeightguardError, match="make a new one"):
            call(pair[0])
        assert pair[0].run(None, X), name


def test_parameters_are_called_as_onnxruntime_calls_them(tmp_path: Path) -> None:
    path = saved(perceptron(), tmp_path / "model")
    session = GuardedSession(
        path_or_bytes=path, sess_options=options(), providers=["CPUExecutionProvider"],
        provider_options=[{"unused": "1"}], cache=tmp_path / "cache",
    )  # fmt: skip
    assert session.mode == "sealed"
    for keyword in ("disabled_optimizers", "enable_fallback", "read_config_from_model"):
        with pytest.raises(WeightguardError, match=keyword):
            GuardedSession(path, cache=tmp_path / "cache", **{keyword: 1})


@pytest.mark.parametrize(
    "providers",
    [
        ["CPUExecutionProvider", "CPUExecutionProvider"],
        [("CPUExecutionProvider", {"unused": "1"})],
        [],
        None,
    ],
)
def test_the_cpu_is_sealed_however_it_is_asked_for(tmp_path: Path, providers: Any) -> None:
    path = saved(perceptron(), tmp_path / "model")
    session = GuardedSession(path, providers=providers, cache=tmp_path / "cache")
    assert session.mode == "sealed"
    session.set_providers([("CPUExecutionProvider", {})])
    assert session.run(None, X)


def test_a_profile_is_that_of_the_session_that_serves(tmp_path: Path) -> None:
    path = saved(perceptron(), tmp_path / "model")
    asked = options()
    asked.enable_profiling, asked.profile_file_prefix = True, str(tmp_path / "profile")
    session = GuardedSession(path, asked, cache=tmp_path / "cache")
    session.run(None, X)
    assert Path(session.end_profiling()).stat().st_size
    assert len(list(tmp_path.glob("profile*"))) == 1
    assert asked.enable_profiling


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "providers": ({"providers": "CPUExecutionProvider"}, "a list"),
    "sess_options": ({"sess_options": 3}, "SessionOptions"),
    "a callable of nothing": ({"sess_options": lambda: None}, "SessionOptions"),
    "settings": ({"settings": 3}, "Settings"),
    "no share": ({"canary_share": float("nan")}, "canary_share"),
    "all the time": ({"canary_share": 1}, "canary_share"),
    "a negative share": ({"canary_share": -0.1}, "canary_share"),
    "canary by another name": ({"canary": {"z": X["x"]}}, "canary that was given"),
    "canary of another type": ({"canary": {"x": np.arange(3)}}, "canary that was given"),
    "canary of text": ({"canary": "x"}, "name: array"),
    "an empty canary": ({"canary": {}}, "canary that was given"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_told_apart(tmp_path: Path, case: str) -> None:
    path = saved(perceptron(), tmp_path / "model")
    more, words = BAD[case]
    with pytest.raises(WeightguardError, match=words):
        GuardedSession(path, cache=tmp_path / "cache", **more)
    for nothing in (None, 3, b"model"):
        with pytest.raises(WeightguardError, match="give a path"):
            GuardedSession(nothing)  # type: ignore[arg-type]
