"""sound_answer: what is computed while damage is found, healed or open never leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.conformance.arrays import ArrayAdapter
from tests.integrations.serving.test_routes import damage, model
from weightguard import IntegrityError, WeightguardError
from weightguard.finding import finding
from weightguard.guard import Guard, Settings
from weightguard_integrations.serving import sound_answer


def made(*reactions: str) -> tuple[Guard, Callable[[], None]]:
    """Return a guard of a small model, and what damages the model."""
    runtime = model()
    settings = Settings(on_incident=reactions)  # type: ignore[arg-type]
    return Guard(ArrayAdapter(runtime), settings=settings), lambda: damage(runtime)


def test_a_healthy_model_answers_once() -> None:
    guard, _ = made("repair")
    answers = iter("ab")
    assert sound_answer(guard, lambda: next(answers)) == "a"


def test_what_rests_on_damage_is_computed_again_though_it_was_healed() -> None:
    guard, spoil = made("repair")
    calls = []

    def compute() -> int:
        calls.append(guard.state)
        if len(calls) == 1:
            spoil()
            guard.check()
            assert guard.incidents[-1].code == "WG907"
        return len(calls)

    assert sound_answer(guard, compute) == 2


def test_damage_that_stays_ends_in_an_error_and_is_never_computed_with() -> None:
    guard, spoil = made("metrics")
    spoil()
    guard.check()
    with pytest.raises(IntegrityError) as caught:
        sound_answer(guard, lambda: pytest.fail("computed"), patience=0.1)
    assert [f.rule for f in caught.value.report.findings] == ["WG901"]


def test_damage_that_never_ends_does_not_keep_a_client_for_ever() -> None:
    guard, spoil = made("repair")
    calls = []

    def compute() -> None:
        calls.append(1)
        spoil()
        guard.check()

    with pytest.raises(IntegrityError, match="found or healed during each of 4 attempts"):
        sound_answer(guard, compute, attempts=4)
    assert len(calls) == 4
    with pytest.raises(WeightguardError, match="0 attempts"):
        sound_answer(guard, compute, attempts=0)


def test_quarantine_is_not_waited_for() -> None:
    guard, _ = made("repair")
    guard.quarantine()
    before = time.monotonic()
    with pytest.raises(IntegrityError):
        sound_answer(guard, lambda: pytest.fail("computed"), patience=3600)
    assert time.monotonic() - before < 600


def test_a_sentinel_alone_counts_for_nothing() -> None:
    guard, _ = made("repair")
    calls = []

    def compute() -> int:
        guard.note(finding("WG905", "an unusual prompt"))
        calls.append(1)
        return len(calls)

    assert sound_answer(guard, compute) == 1


def test_a_closed_guard_vouches_for_no_answer() -> None:
    guard, _ = made("repair")
    guard.close()
    with pytest.raises(WeightguardError, match="closed"):
        sound_answer(guard, lambda: pytest.fail("computed"))


def test_an_update_is_waited_for() -> None:
    guard, spoil = made("repair")
    inside, states = threading.Event(), []

    def update() -> None:
        with guard.update():
            inside.set()
            time.sleep(0.1)
            spoil()

    writer = threading.Thread(target=update)
    writer.start()
    inside.wait(30)
    sound_answer(guard, lambda: states.append(guard.state.value), patience=60)
    writer.join()
    assert states == ["healthy"]
    assert "WG903" in [incident.code for incident in guard.incidents]
