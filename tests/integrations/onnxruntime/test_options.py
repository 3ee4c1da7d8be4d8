"""Options of a caller: copied whole, or refused; nothing of them is lost in silence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as states

from tests.integrations.onnxruntime.models import WIDTH, perceptron, saved
from weightguard import WeightguardError
from weightguard_integrations.onnxruntime import GuardedSession
from weightguard_integrations.onnxruntime.entries import (
    DECIDING,
    FOREIGN_PREFIXES,
    OTHER,
    REFUSED,
)
from weightguard_integrations.onnxruntime.options import Recipe

MODES = ("sealed", "inplace", "opaque")
X = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = perceptron()
    made.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    return saved(made, tmp_path / "model", external=1)


@pytest.fixture
def load(path: Path, tmp_path: Path) -> Callable[..., GuardedSession]:
    return lambda options, mode="sealed": GuardedSession(
        path, options, mode=mode, cache=tmp_path / "cache"
    )


def test_every_entry_that_this_onnxruntime_knows_is_placed() -> None:
    names = re.compile(rb"(?:session|optimization|mlas|ep)(?:\.[a-z0-9_]+)+\0")
    found = {name[:-1].decode() for name in names.findall(Path(states.__file__).read_bytes())}
    found -= {"session.h", "session.cc"}
    assert len(found) > 60
    foreign = {name for name in found if name.startswith(FOREIGN_PREFIXES)}
    assert found - foreign <= {*DECIDING, *OTHER, *REFUSED}
    assert not {*DECIDING} & {*OTHER} | {*DECIDING, *OTHER} & {*REFUSED}


def test_entries_are_copied_and_those_that_decide_tell_entries_apart() -> None:
    given = ort.SessionOptions()
    for key in (*DECIDING, *OTHER):
        given.add_session_config_entry(key, "7")
    recipe = Recipe(given)
    fresh = recipe.fresh()
    assert {fresh.get_session_config_entry(key) for key in (*DECIDING, *OTHER)} == {"7"}
    assert {*DECIDING} <= recipe.described().keys()
    assert not {*OTHER} & recipe.described().keys()


@pytest.mark.parametrize("key", REFUSED)
def test_entries_that_lead_past_the_verified_files_are_refused(key: str) -> None:
    given = ort.SessionOptions()
    given.add_session_config_entry(key, "elsewhere")
    with pytest.raises(WeightguardError, match=re.escape(key)):
        Recipe(given)


def test_a_format_that_is_the_default_is_no_matter() -> None:
    given = ort.SessionOptions()
    given.add_session_config_entry("session.load_model_format", "ONNX")
    assert Recipe(given).fresh()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("by", ["name", "denotation"])
@pytest.mark.parametrize("made", [False, True])
def test_free_dimensions_are_fixed(
    load: Callable[..., GuardedSession], mode: str, by: str, made: bool
) -> None:
    def make() -> ort.SessionOptions:
        options = ort.SessionOptions()
        if by == "name":
            options.add_free_dimension_override_by_name("n", 3)
        else:
            options.add_free_dimension_override_by_denotation("DATA_BATCH", 3)
        return options

    session = load(make if made else make(), mode)
    assert session.get_inputs()[0].shape == [3, WIDTH]
    assert session.run(None, X)[0].shape == (3, WIDTH)
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(None, {"x": X["x"][:1]})
    assert load(None, mode).get_inputs()[0].shape == ["n", WIDTH]


@pytest.mark.parametrize("mode", MODES)
def test_other_initializers_are_refused(
    load: Callable[..., GuardedSession], path: Path, mode: str
) -> None:
    other = ort.OrtValue.ortvalue_from_numpy(np.ones((WIDTH, 256), np.float32))
    held = bytes((path.parent / "weights-0.bin").stat().st_size)
    puts: list[Callable[[ort.SessionOptions], object]] = [
        lambda options: options.add_initializer("first", other),
        lambda options: options.add_external_initializers(["first"], [other]),
    ]
    for put in puts:
        given = ort.SessionOptions()
        put(given)
        for options in (given, lambda given=given: given):
            with pytest.raises(WeightguardError, match="options"):
                load(options, mode)

    def make() -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.add_external_initializers_from_files_in_memory(
            ["weights-0.bin"], [held], [len(held)]
        )
        return options

    with pytest.raises(WeightguardError, match="in the place of the model's"):
        load(make, mode)


def test_an_input_that_is_no_message_is_refused(tmp_path: Path) -> None:
    model = perceptron()
    whole = model.SerializeToString()
    name = onnx.ModelProto.FromString(whole).graph.input[0].SerializeToString()
    broken = whole.replace(name, b"\xff" * len(name))
    assert broken != whole
    target = tmp_path / "model.onnx"
    target.write_bytes(broken)
    for mode in MODES:
        for options in (None, ort.SessionOptions()):
            with pytest.raises(WeightguardError):
                GuardedSession(target, options, mode=mode, cache=tmp_path / "cache")
