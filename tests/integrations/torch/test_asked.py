"""What cannot be meant is refused in one line, and nothing is left open or guarded behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.integrations.torch.test_guard import codes
from tests.integrations.torch.tiny_models import gpt2, llama
from weightguard import Manifest, WeightguardError, fingerprint
from weightguard.guard import Piece, State
from weightguard_integrations.torch import guard

HEAD = [Piece("lm_head.weight", 0, 16384)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    llama().save_pretrained(folder / "llama")
    gpt2().save_pretrained(folder / "gpt2")
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Iterator[Manifest]:
    with fingerprint(folder / "llama") as made:
        yield made


@pytest.fixture(scope="module")
def other(folder: Path) -> Iterator[Manifest]:
    with fingerprint(folder / "gpt2") as made:
        yield made


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"on_incident": "log"}, r"on_incident is a list: \['log'\]"),
        ({"on_incident": ["log", "panic"]}, "'panic' is no reaction: give log, metrics"),
        ({"threads": 0}, "0 threads cannot seal a model"),
        ({"threads": "two"}, "'two' threads cannot seal a model"),
        ({"on_incident": None}, r"on_incident is a list: \[None\]"),
        ({"manifest": 5}, "manifest is a path, not int"),
        ({"golden": b"copy"}, "golden is a path, not bytes"),
        ({"canary": "0s"}, "'0s' is not a duration such as 60s"),
        ({"canary": "soon"}, "'soon' is not a duration such as 60s"),
        ({"names": {"head": "lm_head.weight"}}, "`names` names 'head', which is no parameter"),
        ({"names": {"lm_head.weight": "head"}}, "calls 'lm_head.weight' 'head', which is no att"),
        ({"pieces": {"head": HEAD}}, "`pieces` names 'head', which is no parameter"),
        ({"golden": "/nowhere"}, "the golden copy cannot be used: '/nowhere' cannot be opened"),
    ],
)
def test_a_setting_that_means_nothing(
    manifest: Manifest, asked: dict[str, object], message: str
) -> None:
    model = llama()
    with pytest.raises(WeightguardError, match=message) as caught:
        guard(model, **{"manifest": manifest, **asked})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    guard(model, manifest).close()


@pytest.mark.parametrize("model", ["model", llama().state_dict(), None])
def test_what_is_no_model(model: object) -> None:
    with pytest.raises(WeightguardError, match=r"is no torch\.nn\.Module: give the model"):
        guard(model)  # type: ignore[arg-type]


def test_the_golden_copy_of_another_model(folder: Path, manifest: Manifest) -> None:
    with pytest.raises(WeightguardError, match=r"has none of the manifest's tensors"):
        guard(llama(), manifest, golden=folder / "gpt2")


def test_an_update_to_the_manifest_of_another_model(manifest: Manifest, other: Manifest) -> None:
    model = llama()
    with guard(model, manifest, scrub=None) as made:
        before = made.coverage()
        with pytest.raises(WeightguardError, match="another model"), made.update(other):
            pass
        assert (made.state, made.coverage()) == (State.HEALTHY, before)
        assert made.check().findings == ()
        with made.update(manifest):
            pass
        assert made.coverage() == before


def test_nothing_to_guard_is_said() -> None:
    with guard(nn.ReLU(), scrub=None) as made:
        (told,) = made.incidents
        assert told.code == "WG916"
        assert "nothing to guard" in told.finding.message
        assert (made.state, made.coverage().ratio) == (State.HEALTHY, 0)


def test_a_callback_that_raises_leaves_one_traceback(
    manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    def pager(_incident: object) -> None:
        raise ConnectionError("no route")

    model = llama()
    with guard(model, manifest, scrub=None, on_incident=[pager, "repair"]) as made:
        caplog.clear()
        model.lm_head.weight.data.view(torch.int16)[3, 4] ^= 64
        made.check()
        assert set(codes(made)) == {"WG901", "WG907", "WG912"}
        failures = [record for record in caplog.records if record.exc_info]
        assert len(failures) == 2, "one for the damage, one for its repair"
