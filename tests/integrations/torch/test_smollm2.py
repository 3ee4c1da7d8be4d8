"""On SmolLM2-135M-Instruct the known super weights are confirmed and sound prompts stay quiet."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.integrations.torch.real_folder import smollm2_folder
from tests.real_models import smollm2_gguf
from weightguard import Manifest, fingerprint, open_checkpoint, verify
from weightguard.calibration import Ablation, Calibration
from weightguard.scan.values import exact_bits
from weightguard_integrations.torch import calibrate
from weightguard_integrations.torch.activations import Limits, profiles
from weightguard_integrations.torch.blocks import find_blocks, mean_loss
from weightguard_integrations.torch.canary import final_logits
from weightguard_integrations.torch.loading import check_loadable, load_model
from weightguard_integrations.torch.probe import record_probes
from weightguard_integrations.torch.projections import find_projections
from weightguard_integrations.torch.prompts import DECODE, PADDED, make_prompts
from weightguard_integrations.torch.sentinels import Sentinels
from weightguard_integrations.torch.stack import deterministic

# a calibration takes a minute: one process makes it, for all tests of it
pytestmark = [pytest.mark.proof, pytest.mark.real, pytest.mark.xdist_group("calibrated-smollm2")]

FIRST, SECOND, HARMLESS = (507, 1229), (507, 1487), (507, 678)
DECODED = 4


class Case(NamedTuple):
    """A checkpoint, its calibrated manifest, and how long that took."""

    path: Path
    manifest: Manifest
    seconds: float

    @property
    def calibration(self) -> Calibration:
        calibration = self.manifest.document.calibration
        assert calibration is not None
        return calibration

    def effect(self, layer: int, *indices: tuple[int, int]) -> Ablation:
        tensor = down(layer)
        (found,) = (
            e for e in self.calibration.ablations if (e.tensor, e.indices) == (tensor, indices)
        )
        return found


def down(layer: int) -> str:
    return f"model.layers.{layer}.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    path, started = smollm2_folder(), time.perf_counter()
    with fingerprint(path) as manifest, calibrate(path, manifest) as made:
        yield Case(path, made, time.perf_counter() - started)


def test_the_super_weights_are_confirmed(case: Case, claim: Callable[[str], None]) -> None:
    both = case.effect(11, FIRST, SECOND)
    assert both.confirmed
    assert case.effect(11, FIRST).confirmed
    assert both.loss_change > 4 * case.effect(11, FIRST).loss_change
    assert case.calibration.ablations[0] == both
    weights = {(w.tensor, w.index): w for w in case.manifest.document.salience.super_weights}
    for index in (FIRST, SECOND):
        weight = weights[down(11), index]
        assert (weight.status, weight.loss_change) == ("confirmed", both.loss_change)
    assert weights[down(11), FIRST].bits == "0x40bc"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    claim(
        f"calibrate, SmolLM2 {case.path.name}: {both.loss_change} nats for the pair, "
        f"{case.effect(11, FIRST).loss_change} and {case.effect(11, SECOND).loss_change} alone; "
        f"{len(case.calibration.ablations)} ablations, {case.seconds:.0f} s, peak {peak:.1f} GB"
    )


def test_a_harmless_spike_is_not_confirmed(case: Case) -> None:
    alone = case.effect(28, HARMLESS)
    assert alone.spike > 10_000
    assert not alone.confirmed
    assert alone.loss_change < case.calibration.confirmation_threshold / 2
    weights = {(w.tensor, w.index): w for w in case.manifest.document.salience.super_weights}
    assert weights[down(28), HARMLESS].status == "nominated"


def test_one_channel_is_massive(case: Case) -> None:
    (massive,) = case.calibration.massive_activations
    assert (massive.channel, massive.position) == (507, 0)
    assert [band.layer for band in massive.bands] == list(range(11, 28))
    assert case.calibration.uncalibrated == ()


def test_held_out_prompts_raise_no_alarm(case: Case, claim: Callable[[str], None]) -> None:
    alarms = case.calibration.false_alarms
    assert alarms.prompts >= 100
    assert {"languages", "code", "gibberish", "one token", "long", "repeated token"} <= set(
        alarms.by_kind
    )
    assert {"left padding", "kv-cache decode"} <= set(alarms.by_kind)
    assert alarms.alarms == 0
    claim(f"calibrate, {case.path.name}: false alarms 0 of {alarms.prompts} held-out prompts")


def test_the_manifest_still_verifies(case: Case) -> None:
    assert verify(case.path, case.manifest).findings == ()


def test_a_damaged_model_is_told_from_a_sound_one(case: Case, claim: Callable[[str], None]) -> None:
    with open_checkpoint(case.path) as checkpoint, deterministic(None):
        loaded = load_model(case.path, checkpoint)
        model = loaded.model
        blocks = find_blocks(model, loaded.config)
        prompts = make_prompts(loaded.encode, loaded.vocabulary, None, 8192)
        recorded = case.manifest.canary_logits()
        assert (final_logits(model, prompts.canary).numpy() == recorded).all()
        started = time.perf_counter()
        assert record_probes(model, prompts.probes) == case.calibration.probes
        seconds = time.perf_counter() - started
        sound = mean_loss(model, prompts.loss)
        weight = model.get_parameter("model.layers.11.mlp.down_proj.weight")
        weight[507, 1229] = weight[507, 1487] = 0
        limits = Limits(case.calibration.massive_activations, case.calibration.activation_bounds)
        judged = [limits.exceeded(p) for p in profiles(model, blocks, prompts.held_out["english"])]
        off = abs(final_logits(model, prompts.canary).numpy() - recorded).max()
        damaged = mean_loss(model, prompts.loss)
    assert all(judged)
    assert off > case.calibration.canary.tolerances["bfloat16"]
    claim(
        f"calibrate, both super weights zeroed: loss {sound:.2f} to {damaged:.2f} nats, "
        f"{sum(judged)} of {len(judged)} prompts leave the bands, canary off by {off:.1f}, "
        f"tolerances {case.calibration.canary.tolerances}; probe taken in {seconds:.1f} s"
    )


def test_the_probe_is_of_unrelated_sequences(case: Case) -> None:
    probes = {probe.name: probe for probe in case.calibration.probes}
    assert set(probes) == {"code", "encyclopaedic", "prose", "random"}
    for probe in probes.values():
        assert len(probe.tokens) == len(probe.entropies) >= 48
        assert all(0 <= entropy < 11 for entropy in probe.entropies)


def test_another_process_gets_the_same_canary(case: Case) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from weightguard_integrations.torch.stack import deterministic, require_torch\n"
        "require_torch()\n"
        "from weightguard import open_checkpoint\n"
        "from weightguard_integrations.torch.canary import final_logits\n"
        "from weightguard_integrations.torch.loading import load_model\n"
        f"path, tokens = Path({str(case.path)!r}), {case.calibration.canary.tokens!r}\n"
        "with open_checkpoint(path) as checkpoint, deterministic(None):\n"
        "    logits = final_logits(load_model(path, checkpoint).model, tokens)\n"
        "sys.stdout.buffer.write(logits.numpy().tobytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout == case.manifest.canary_logits().tobytes()
    assert done.stderr == b""


def test_the_gguf_file_is_the_same_model_with_the_same_super_weights(
    case: Case, claim: Callable[[str], None]
) -> None:
    """The folder holds the file's values rounded to bfloat16, so what was measured is its too."""
    path = smollm2_gguf()
    with (
        open_checkpoint(case.path) as folder,
        open_checkpoint(path) as checkpoint,
        fingerprint(path) as manifest,
        deterministic(None),
    ):
        check_loadable(path, checkpoint)
        loaded, rounded = load_model(path, checkpoint), load_model(case.path, folder)
        weights = dict(loaded.model.named_parameters())
        expected = dict(rounded.model.named_parameters())
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            assert torch.equal(weight.bfloat16().float(), expected[name]), name
        prompts = make_prompts(loaded.encode, loaded.vocabulary, None, 8192)
        assert prompts == make_prompts(rounded.encode, rounded.vocabulary, None, 8192)
        projections = find_projections(loaded.model, manifest.document)
        assert [p.tensor for p in projections] == [f"blk.{n}.ffn_down.weight" for n in range(30)]
        assert all(p.index(*FIRST) == FIRST for p in projections)
        tensor = next(t for t in checkpoint.tensors if t.name == projections[11].tensor)
        assert exact_bits(tensor, tensor.element(FIRST)) == 0x40BC0600
        sound = mean_loss(loaded.model, prompts.loss)
        for index in (FIRST, SECOND):
            projections[11].weight[index] = 0
        change = mean_loss(loaded.model, prompts.loss) - sound
    both = case.effect(11, FIRST, SECOND).loss_change
    assert change == pytest.approx(both, rel=0.05)
    claim(f"calibrate, {path.name}: the pair zeroed costs {change:.4g} nats, {both} in the folder")


def test_sentinels_are_silent_on_sound_prompts_and_hear_zeroed_super_weights(
    case: Case, claim: Callable[[str], None]
) -> None:
    with open_checkpoint(case.path) as checkpoint, deterministic(None):
        loaded = load_model(case.path, checkpoint)
        model, blocks = loaded.model, find_blocks(loaded.model, loaded.config)
        prompts = make_prompts(loaded.encode, loaded.vocabulary, None, 8192)
        limits = case.calibration
        sentinels = Sentinels(blocks, limits.massive_activations, limits.activation_bounds, 576)
        counted = 0
        for kind, sequences in prompts.held_out.items():
            for sequence in sequences:
                cut = max(2, len(sequence) - DECODED) if kind == DECODE else len(sequence)
                output = model(torch.tensor([sequence[:cut]]), use_cache=True, logits_to_keep=1)
                for token in sequence[cut:]:
                    cache = output.past_key_values
                    model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                assert sentinels.read() == [], kind
                counted += 1
        rows = prompts.held_out[PADDED]
        width = max(map(len, rows))
        tokens = torch.tensor([[0] * (width - len(s)) + list(s) for s in rows])
        mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in rows])
        model.generate(tokens, attention_mask=mask, max_new_tokens=DECODED, do_sample=False)
        assert sentinels.read() == [], "left padding, generate"
        weight = model.get_parameter(down(11))
        weight[FIRST] = weight[SECOND] = 0
        heard = 0
        for sequence in prompts.held_out["english"]:
            model(torch.tensor([sequence]), use_cache=True, logits_to_keep=1)
            heard += bool(sentinels.read())
    english = len(prompts.held_out["english"])
    assert heard == english
    claim(
        f"sentinels, SmolLM2: 0 alarms in {counted} held-out prompts and {len(rows)} padded ones; "
        f"super weights zeroed: {heard} of {english} prompts heard"
    )
