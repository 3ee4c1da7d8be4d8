"""The canary: inputs made up from signatures, a budget, and what follows from wrong answers."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from tests.integrations.onnxruntime.models import WIDTH, everything, model, perceptron, saved
from weightguard import IntegrityError, WeightguardError
from weightguard.guard import Settings
from weightguard_integrations.onnxruntime import GuardedSession, watch
from weightguard_integrations.onnxruntime import canary as canaries

X = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., GuardedSession]:
    def load(made: onnx.ModelProto, **more: object) -> GuardedSession:
        path = saved(made, tmp_path / "model")
        quiet = {"mode": "sealed", "canary_share": 0, "scrub": None}
        return GuardedSession(path, cache=tmp_path / "cache", **{**quiet, **more})  # type: ignore[arg-type]

    return load


def feeds_of(session: GuardedSession) -> tuple[canaries.Feed, ...]:
    assert session._loaded.watch is not None
    return tuple(session._loaded.watch._feeds)


def codes(session: GuardedSession) -> list[str]:
    return [i.code for i in session.incidents if i.code not in ("WG910", "WG916")]


def picker() -> onnx.ModelProto:
    """A model whose own table of indices, in the graph, picks rows: damage makes it fail."""
    generator = np.random.default_rng(4)
    return model(
        [
            h.make_node("Gather", ["table", "picks"], ["rows"]),
            h.make_node("Gather", ["rows", "ids"], ["chosen"]),
            h.make_node("Add", ["chosen", "one"], ["y"]),
        ],
        [h.make_tensor_value_info("ids", T.INT64, ["n"])],
        [h.make_tensor_value_info("y", T.FLOAT, ["n", 16])],
        {
            "table": generator.standard_normal((50, 16)).astype(np.float32),
            "picks": generator.integers(0, 50, 400),
            "one": np.ones(16, np.float32),
        },
    )


def turning() -> onnx.ModelProto:
    """A model that goes round a loop as often as one of its weights says."""
    body = h.make_graph(
        [h.make_node("Identity", ["going"], ["goes"]), h.make_node("Sin", ["x"], ["y"])],
        "body",
        [
            h.make_tensor_value_info("turn", T.INT64, []),
            h.make_tensor_value_info("going", T.BOOL, []),
            h.make_tensor_value_info("x", T.FLOAT, ["n"]),
        ],
        [
            h.make_tensor_value_info("goes", T.BOOL, []),
            h.make_tensor_value_info("y", T.FLOAT, ["n"]),
        ],
    )
    return model(
        [
            h.make_node("Gather", ["turns", "which"], ["count"]),
            h.make_node("Loop", ["count", "go", "start"], ["last"], body=body),
            h.make_node("Mul", ["last", "scale"], ["out"]),
        ],
        [
            h.make_tensor_value_info("start", T.FLOAT, ["n"]),
            h.make_tensor_value_info("which", T.INT64, []),
        ],
        [h.make_tensor_value_info("out", T.FLOAT, ["n"])],
        {
            "turns": np.full(256, 3, np.int64),
            "go": np.array(True),
            "scale": np.array([2], np.float32),
        },
    )


def lookup() -> onnx.ModelProto:
    return model(
        [
            h.make_node("Unsqueeze", ["ids", "axis"], ["wide"]),
            h.make_node("Gather", ["table", "wide"], ["a"], axis=1),
            h.make_node("Cast", ["other"], ["narrow"], to=T.INT32),
            h.make_node("Gather", ["table", "narrow"], ["b"], axis=0),
            h.make_node("Gather", ["small", "other"], ["c"], axis=0),
            h.make_node("ReduceSum", ["a"], ["a1"], keepdims=0),
            h.make_node("ReduceSum", ["b"], ["b1"], keepdims=0),
            h.make_node("ReduceSum", ["c"], ["c1"], keepdims=0),
            h.make_node("Sum", ["a1", "b1", "c1"], ["y"]),
        ],
        [
            h.make_tensor_value_info("ids", T.INT64, ["batch", "length"]),
            h.make_tensor_value_info("other", T.INT64, ["batch", 3]),
            h.make_tensor_value_info("flag", T.INT32, ["batch"]),
        ],
        [h.make_tensor_value_info("y", T.FLOAT, [])],
        {
            "axis": np.array([0], np.int64),
            "table": np.ones((90, 40), np.float32),
            "small": np.ones((7, 2), np.float32),
        },
    )


def test_integers_stay_within_what_they_index() -> None:
    assert canaries.index_limits(lookup()) == {"ids": 40, "other": 7}


def test_inputs_follow_the_signature(load: Callable[..., GuardedSession]) -> None:
    first, second = feeds_of(load(lookup()))
    assert {name: value.shape for name, value in first.items()} == {
        "ids": (2, 8), "other": (2, 3), "flag": (2,)
    }  # fmt: skip
    assert first["flag"].dtype == np.int32
    assert set(np.unique(first["flag"])) <= {0, 1}
    assert not np.array_equal(first["ids"], second["ids"])
    choices = [bool(feed["choice"]) for feed in feeds_of(load(everything()))]
    assert choices == [True, False]


def test_shapes_are_tried_until_one_runs(load: Callable[..., GuardedSession]) -> None:
    made = model(
        [h.make_node("Reshape", ["x", "shape"], ["y"])],
        [h.make_tensor_value_info("x", T.FLOAT, ["n", "m"])],
        [h.make_tensor_value_info("y", T.FLOAT, None)],
        {"shape": np.array([64], np.int64)},
    )
    assert feeds_of(load(made))[0]["x"].size == 64


def test_where_none_runs_it_is_asked_for(load: Callable[..., GuardedSession]) -> None:
    made = model(
        [h.make_node("Reshape", ["x", "shape"], ["y"])],
        [h.make_tensor_value_info("x", T.FLOAT, ["n", "m"])],
        [h.make_tensor_value_info("y", T.FLOAT, None)],
        {"shape": np.array([7, 11], np.int64)},
    )
    for mode in ("sealed", "inplace", "opaque"):
        with pytest.raises(WeightguardError, match="canary="):
            load(made, mode=mode)
        assert load(made, mode=mode, canary={"x": np.ones((1, 77), np.float32)}).run_canary()


def test_text_is_asked_for(load: Callable[..., GuardedSession]) -> None:
    made = model(
        [h.make_node("StringNormalizer", ["words"], ["y"], case_change_action="UPPER", locale="C")],
        [h.make_tensor_value_info("words", T.STRING, ["n"])],
        [h.make_tensor_value_info("y", T.STRING, None)],
        {},
    )
    with pytest.raises(WeightguardError, match="'words' of type"):
        load(made)
    session = load(made, canary={"words": np.array(["a", "b"])})
    assert session.run_canary()
    assert session.run(None, {"words": np.array(["c"])})[0].tolist() == ["C"]


def test_a_model_that_rolls_dice_is_refused(load: Callable[..., GuardedSession]) -> None:
    made = model(
        [h.make_node("RandomNormalLike", ["x"], ["noise"]),
         h.make_node("Add", ["x", "noise"], ["y"])],
        [h.make_tensor_value_info("x", T.FLOAT, ["n"])],
        [h.make_tensor_value_info("y", T.FLOAT, ["n"])],
        {},
    )  # fmt: skip
    for mode in ("sealed", "opaque"):
        with pytest.raises(WeightguardError, match="differently each time"):
            load(made, mode=mode)


def test_an_empty_canary_is_refused(load: Callable[..., GuardedSession]) -> None:
    with pytest.raises(WeightguardError, match="proves nothing"):
        load(perceptron(), canary=[])


def damage_heap(pattern: bytes, change: Callable[[bytes], bytes]) -> int:
    """Change every copy of some bytes in this process's writable memory but this one."""
    places = 0
    with Path("/proc/self/maps").open() as maps, Path("/proc/self/mem").open("r+b", 0) as memory:
        for line in list(maps):
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0\s*(\[heap\])?$", line)
            if not match:
                continue
            start, stop = int(match[1], 16), int(match[2], 16)
            memory.seek(start)
            data = memory.read(stop - start)
            at = data.find(pattern)
            while at >= 0:
                memory.seek(start + at)
                memory.write(change(data[at : at + len(pattern)]))
                places += 1
                at = data.find(pattern, at + 1)
    return places


def test_damage_that_nothing_can_read_shows_in_the_answers(
    load: Callable[..., GuardedSession],
) -> None:
    made = perceptron()
    needle = next(t for t in made.graph.initializer if t.name == "bias").raw_data[64:128]
    session = load(made, mode="opaque")
    del made
    assert session.run_canary()
    assert session.coverage().guard.ratio == 0
    assert damage_heap(needle, lambda old: bytes([old[0], old[1], old[2], old[3] ^ 0x40]) + old[4:])
    assert not session.run_canary()
    assert codes(session) == ["WG906"]
    assert not session.run_canary()
    assert codes(session) == ["WG906"], "said once"
    assert session.status().state == "degraded"


@pytest.mark.parametrize("mode", ["sealed", "inplace"])
def test_a_wrong_answer_has_all_weights_checked_and_repaired(
    load: Callable[..., GuardedSession], mode: str
) -> None:
    session = load(perceptron(), mode=mode, canary_share=1e-9)
    clean = session.run(None, X)[0]
    session.adapter.write("bias", 3, b"\x7e")
    session._loaded.watch._due = 0  # type: ignore[union-attr]
    # the run that finds the damage is itself right already
    assert np.array_equal(session.run(None, X)[0], clean)
    assert codes(session) == ["WG906", "WG901", "WG907"]
    assert session.status().state == "healthy"


def test_a_policy_may_raise(load: Callable[..., GuardedSession]) -> None:
    settings = Settings(on_incident=("raise",))
    session = load(perceptron(), settings=settings, canary_share=1e-9)
    session.run(None, X)
    session.adapter.write("bias", 3, b"\x7e")
    session._loaded.watch._due = 0  # type: ignore[union-attr]
    for _ in range(2):
        with pytest.raises(IntegrityError) as caught:
            session.run(None, X)
    assert {f.rule for f in caught.value.report.findings} == {"WG901", "WG906"}


START = {"start": np.ones(5, np.float32), "which": np.array(7)}
FOR_EVER = np.full(256, 3 + (1 << 48), np.int64).tobytes()


def test_a_check_puts_right_what_would_run_for_ever(load: Callable[..., GuardedSession]) -> None:
    session = load(turning())
    clean = session.run(None, START)[0]
    session.adapter.write("turns", 0, FOR_EVER)
    assert session.check().findings == ()
    assert codes(session) == ["WG901", "WG907"]
    assert np.array_equal(session.run(None, START)[0], clean)


def test_a_canary_that_runs_for_ever_is_ended(
    load: Callable[..., GuardedSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LEAST_LIMIT", 1.0)
    session = load(turning(), canary_share=1e-9)
    clean = session.run(None, START)[0]
    session.adapter.write("turns", 0, FOR_EVER)
    session._loaded.watch._due = 0  # type: ignore[union-attr]
    assert np.array_equal(session.run(None, START)[0], clean)
    assert codes(session) == ["WG906", "WG901", "WG907"]
    assert "was ended" in session.incidents[-3].finding.message
    assert session.run_canary()


def test_no_canary_runs_on_weights_that_are_known_to_be_damaged(
    load: Callable[..., GuardedSession],
) -> None:
    session = load(perceptron(), canary_share=1e-9, settings=Settings(on_incident=()))
    session.adapter.write("bias", 3, b"\x7e")
    session.guard.check()
    session._loaded.watch._due = 0  # type: ignore[union-attr]
    session.run(None, X)
    assert codes(session) == ["WG901"]
    assert not session.run_canary(), "asked for, it runs"


def test_the_budget_is_kept(
    load: Callable[..., GuardedSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now))
    session = load(perceptron(), canary_share=0.25)
    watcher = session._loaded.watch
    assert watcher is not None
    original, runs = watcher._run, []

    def slow(feed: canaries.Feed, options: ort.RunOptions) -> canaries.Outputs:
        nonlocal now
        runs.append(now)
        now += 2.0
        return original(feed, options)

    watcher._run = slow  # type: ignore[method-assign]
    for _ in range(80):
        session.run(None, X)
        now += 1.0
    feeds = len(feeds_of(session))
    began, took = runs[::feeds], 2.0 * feeds
    assert len(began) >= 4
    apart = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert min(apart) >= took / 0.25
    assert max(apart) <= took / 0.25 + took + 1.0
    assert codes(session) == []


def test_a_clients_bad_input_is_no_damage(load: Callable[..., GuardedSession]) -> None:
    session = load(picker())
    for _ in range(3):
        with pytest.raises(Exception, match="indices element out of data bounds"):
            session.run(None, {"ids": np.array([400])})
    with pytest.raises(Exception, match="Invalid rank"):
        session.run(None, {"ids": np.zeros((2, 2), np.int64)})
    assert set(codes(session)) == {"WG909"}
    told = [i.finding for i in session.incidents if i.code == "WG909"]
    assert {found.severity for found in told} == {"info"}
    assert "all weights were checked since, and are sound" in told[0].message
    assert "the input may be to blame" in told[0].message
    assert "when they were last checked" in told[1].message, "once a minute, no more is claimed"
    assert session.status().state == "healthy"


def test_a_kernel_that_fails_over_damage_is_found_out(
    load: Callable[..., GuardedSession],
) -> None:
    session = load(picker(), sess_options=unfolded())
    feed = {"ids": np.arange(400)}
    clean = session.run(None, feed)[0]
    assert "picks" in session.adapter.memory.regions
    session.adapter.write("picks", 8 * 300 + 6, b"\x01")
    with pytest.raises(Exception, match="indices element out of data bounds"):
        session.run(None, feed)
    assert "WG901" in codes(session)
    assert "WG907" in codes(session)
    (told,) = (i.finding for i in session.incidents if i.code == "WG909")
    assert "1 damaged block repaired since" in told.message
    assert "are sound" not in told.message
    assert "the input may be to blame" not in told.message
    assert np.array_equal(session.run(None, feed)[0], clean)


def test_a_kernel_that_fails_in_another_thread_is_followed_up(
    load: Callable[..., GuardedSession],
) -> None:
    options = unfolded()
    options.intra_op_num_threads = 2
    session = load(picker(), sess_options=options)
    feed = {"ids": np.arange(400)}
    clean = session.run(None, feed)[0]
    session.adapter.write("picks", 8 * 300 + 6, b"\x01")
    done, errors = threading.Event(), []

    def take(_results: object, _data: object, error: str) -> None:
        errors.append(error)
        done.set()

    session.run_async(None, feed, take, None)
    assert done.wait(60)
    assert "indices element out of data bounds" in errors[0]
    assert codes(session) == []
    assert np.array_equal(session.run(None, feed)[0], clean), "the next run follows it up first"
    assert {"WG901", "WG907", "WG909"} <= set(codes(session))


def unfolded() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def test_digests_tell_outputs_apart() -> None:
    ones = np.ones((2, 3), np.float32)
    distinct = [
        [ones], [ones.astype(np.float64)], [ones.reshape(3, 2)], [ones, ones], [[ones, ones]],
        [{1: 2.0}], [{1: 3.0}], [[{1: 2.0}]], [np.array(["a"], object)], [np.array(["b"], object)],
        [-ones * 0], [ones * 0],
    ]  # fmt: skip
    assert len({canaries.digest(outputs) for outputs in distinct}) == len(distinct)
    assert canaries.digest([ones]) == canaries.digest([ones.T.copy().T])


def test_feeds_survive_a_file() -> None:
    feeds = (
        {"a/b": np.ones((2, 2), np.float16), "words": np.array(["x", "yz"])},
        {"a/b": np.zeros((0, 2), np.float16), "names": np.array(3)},
    )
    again = canaries.decoded(canaries.encoded(feeds))
    assert [list(feed) for feed in again] == [list(feed) for feed in feeds]
    for feed, copy in zip(feeds, again, strict=True):
        for name, value in feed.items():
            assert copy[name].dtype == value.dtype
            assert np.array_equal(copy[name], value)
