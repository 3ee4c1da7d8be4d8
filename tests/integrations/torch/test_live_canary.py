"""The live canary: bit for bit, silent on a sound model, and louder than digests where they end."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from tests.integrations.torch.test_guard import bits, codes
from tests.integrations.torch.tiny_models import llama
from weightguard import IntegrityError, Manifest, fingerprint
from weightguard.guard import State
from weightguard_integrations.torch import TorchGuard, calibrate, guard, torch_guard

TOKENS = torch.arange(12)[None]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manifest]:
    """The manifest of the tiny Llama, calibrated."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    llama().save_pretrained(folder)
    with fingerprint(folder) as plain, calibrate(folder, plain) as calibrated:
        yield calibrated


def test_a_sound_model_answers_bit_for_bit_through_use(manifest: Manifest) -> None:
    model = llama().eval()
    made = guard(model, manifest, scrub=None)
    for length in (1, 5, 12):
        with torch.inference_mode():
            model(TOKENS[:, :length])
        assert made.run_canary()
    assert codes(made) == []
    made.close()


def test_damaged_weights_are_repaired_before_it_runs_once_more(manifest: Manifest) -> None:
    model = llama().eval()
    made = guard(model, manifest, scrub=None, on_incident=("repair",))
    bits(model.lm_head.weight)[5, 6] ^= 1 << 13
    assert made.run_canary()
    assert codes(made) == ["WG901", "WG907"]
    made.close()


def test_what_no_digest_reaches_is_a_canary_mismatch(manifest: Manifest) -> None:
    """A hook that changes an activation stands for a packed copy that went bad."""
    model = llama().eval()
    made = guard(model, manifest, scrub=None, on_incident=("metrics",))
    handle = model.model.norm.register_forward_hook(lambda module, inputs, out: out * 1.25)
    assert not made.run_canary()
    assert not made.run_canary()
    assert codes(made) == ["WG906"]
    assert made.state is State.DEGRADED
    handle.remove()
    assert made.run_canary()
    assert made.state is State.HEALTHY
    made.close()


def at_rest(made: TorchGuard) -> TorchGuard:
    """Wait for the canary that a thread runs at the start, and have no other run beside a test."""
    for thread in made._presence._threads:
        thread.stop()
    return made


def test_requests_are_refused_until_the_canary_is_right_again(manifest: Manifest) -> None:
    model = llama().eval()
    with guard(model, manifest, scrub=None, canary="1h") as made:
        at_rest(made)
        handle = model.model.norm.register_forward_hook(lambda module, inputs, out: out * 1.25)
        assert not made.run_canary()
        with pytest.raises(IntegrityError, match="WG906"):
            model(TOKENS)
        assert not made.run_canary()
        handle.remove()
        assert made.run_canary()
        assert made.state is State.HEALTHY
        model(TOKENS)
        assert codes(made) == ["WG906"]


def test_a_canary_does_not_run_while_requests_are_refused_for_damage(manifest: Manifest) -> None:
    model = llama().eval()
    with guard(model, manifest, scrub=None, canary="1h", on_incident=("raise",)) as made:
        at_rest(made)
        bits(model.lm_head.weight)[5, 6] ^= 1 << 13
        made.check()
        assert not made.run_canary()
        bits(model.lm_head.weight)[5, 6] ^= 1 << 13
        made.check()
        assert made.run_canary()
        assert codes(made) == ["WG901"]


def test_a_pass_that_must_raise_once_is_none_of_the_canarys(manifest: Manifest) -> None:
    model = llama().eval()
    order = ("raise", "repair")
    with guard(model, manifest, scrub=None, canary="1h", on_incident=order) as made:
        at_rest(made)
        bits(model.lm_head.weight)[5, 6] ^= 1 << 13
        made.check()
        assert made.run_canary(), "the damage is healed"
        with pytest.raises(IntegrityError, match="WG901"):
            model(TOKENS)
        model(TOKENS)


def test_another_number_of_threads_is_held_to_the_tolerance(manifest: Manifest) -> None:
    """Sums in another order: a difference within the tolerance then says nothing."""
    model = llama().eval()
    made = guard(model, manifest, scrub=None, on_incident=("metrics",))
    assert made._canary is not None
    made._canary._recorded += 0.01
    assert not made.run_canary()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert made.run_canary()
        made._canary._recorded += 100
        assert not made.run_canary()
    finally:
        torch.set_num_threads(threads)
    made.close()


def test_a_model_compiled_in_place_is_run_as_it_was_recorded(manifest: Manifest) -> None:
    model = llama().eval()
    made = guard(model, manifest, scrub=None, on_incident=("metrics",))

    def compiled(*_: object, **__: object) -> None:
        raise AssertionError("compiled code ran")

    model._compiled_call_impl = compiled
    assert made.run_canary()
    made.close()


def test_a_model_that_fails_is_an_incident_and_not_an_exception(manifest: Manifest) -> None:
    model = llama().eval()
    made = guard(model, manifest, scrub=None, on_incident=("metrics",))

    def broken(*_: object) -> None:
        raise IndexError("out of range")

    handle = model.model.norm.register_forward_hook(broken)
    assert not made.run_canary()
    assert codes(made) == ["WG909"]
    told = made.incidents[-1].finding.message
    assert told == (
        "the canary raised IndexError: out of range; all weights were checked since, and are sound"
    )
    handle.remove()
    assert made.run_canary()
    assert made.state is State.HEALTHY
    made.close()


def test_a_model_that_fails_says_what_was_repaired_meanwhile(manifest: Manifest) -> None:
    model = llama().eval()
    made = guard(model, manifest, scrub=None, on_incident=("repair",))

    def broken(*_: object) -> None:
        raise IndexError("out of range")

    handle = model.model.norm.register_forward_hook(broken)
    bits(model.lm_head.weight)[5, 6] ^= 1 << 13
    assert not made.run_canary()
    assert codes(made) == ["WG901", "WG907", "WG909"]
    told = made.incidents[-1].finding.message
    assert "1 damaged block repaired since" in told
    assert "are sound" not in told
    handle.remove()
    made.close()


def test_a_model_that_failed_over_damage_runs_once_it_is_repaired(manifest: Manifest) -> None:
    model = llama().eval()
    made = guard(model, manifest, scrub=None, on_incident=("repair",))
    clean = model.lm_head.weight.detach().clone()

    def picky(*_: object) -> None:
        if not torch.equal(model.lm_head.weight, clean):
            raise IndexError("out of range")

    handle = model.model.norm.register_forward_hook(picky)
    bits(model.lm_head.weight)[5, 6] ^= 1 << 13
    assert made.run_canary()
    assert codes(made) == ["WG901", "WG907"]
    handle.remove()
    made.close()


def test_it_runs_by_itself_and_an_update_records_it_again(manifest: Manifest) -> None:
    model, factor = llama().eval(), [1.0]
    model.model.norm.register_forward_hook(lambda module, inputs, out: out * factor[0])
    with guard(model, manifest, scrub=None, canary="20ms", on_incident=("metrics",)) as made:
        with made.update(), torch.no_grad():
            model.lm_head.weight.mul_(2)
        factor[0] = 1.25  # hooks that come or go while the canary runs would end its pass
        ends = time.monotonic() + 20
        while "WG906" not in codes(made) and time.monotonic() < ends:
            time.sleep(0.02)
    assert codes(made) == ["WG903", "WG906"]


def test_without_a_calibration_there_is_none() -> None:
    made = guard(llama(), canary="1s")
    assert made.run_canary()
    made.close()


def test_a_canary_between_flips_runs_again_soon(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage around both of its runs says nothing of what no digest reaches."""
    monkeypatch.setattr(torch_guard, "CANARY_AGAIN", 0.01)
    model = llama().eval()
    with guard(model, manifest, scrub=None, canary="1h", on_incident=("repair", "raise")) as made:
        weight = bits(model.lm_head.weight)
        (thread,) = (t for t in made._presence._threads if t._name == "weightguard-canary")
        at_rest(made)
        canary, flips = made._canary, iter(range(2))
        assert canary is not None
        answer = canary.run

        def disturbed() -> torch.Tensor:
            if next(flips, None) is not None:
                weight[5, 6] ^= 1 << 13
            return answer()

        monkeypatch.setattr(canary, "run", disturbed)
        assert not made.run_canary()
        made.check()
        assert made.state is State.DEGRADED
        assert thread._period() == 0.01
        assert made.run_canary()
        assert (made.state, thread._period()) == (State.HEALTHY, 3600.0)
