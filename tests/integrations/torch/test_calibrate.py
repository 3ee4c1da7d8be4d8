"""A planted super weight is confirmed, and the manifest that says so is the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest
import torch

from tests.integrations.torch import tiny_models
from tests.integrations.torch.tiny_models import COLUMNS, ROW, STRENGTH
from weightguard import Manifest, fingerprint, open_checkpoint, verify
from weightguard.manifest import encode
from weightguard.salient import Salience, Score, SuperWeight
from weightguard.scan.values import exact_bits
from weightguard.schema import json_schema
from weightguard_integrations.torch import calibrate
from weightguard_integrations.torch.calibrate import earlier_super_weights

LLAMA_TENSOR = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.saved(tiny_models.llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def calibrated(llama: Path) -> Manifest:
    with fingerprint(llama) as manifest:
        return calibrate(llama, manifest)


def super_weights(manifest: Manifest) -> dict[tuple[str, tuple[int, ...]], SuperWeight]:
    return {(w.tensor, w.index): w for w in manifest.document.salience.super_weights}


def test_the_planted_weight_is_confirmed_with_its_bits(calibrated: Manifest) -> None:
    weight = super_weights(calibrated)[LLAMA_TENSOR, (ROW, COLUMNS[0])]
    assert weight.status == "confirmed"
    assert weight.value == float(torch.tensor(STRENGTH, dtype=torch.bfloat16))
    assert weight.bits == f"0x{torch.tensor(STRENGTH).bfloat16().view(torch.uint16).item():04x}"
    assert weight.loss_change is not None
    assert weight.loss_change > 1
    assert calibrated.document.salience.super_weights[0] == weight


def test_two_weights_that_stand_in_for_each_other_are_confirmed_as_a_pair(tmp_path: Path) -> None:
    folder = tiny_models.saved(tiny_models.llama(twice=True), tmp_path)
    with fingerprint(folder) as manifest, calibrate(folder, manifest) as made:
        calibration = made.document.calibration
        assert calibration is not None
        both = tuple((ROW, column) for column in COLUMNS)
        effects = {e.indices: e for e in calibration.ablations if e.tensor == LLAMA_TENSOR}
        assert not effects[both[:1]].confirmed
        assert not effects[both[1:]].confirmed
        assert effects[both].confirmed
        weights = super_weights(made)
        for index in both:
            assert weights[LLAMA_TENSOR, index].loss_change == effects[both].loss_change


def test_a_transposed_projection_is_indexed_as_the_checkpoint_stores_it(tmp_path: Path) -> None:
    folder = tiny_models.saved(tiny_models.gpt2(), tmp_path)
    with fingerprint(folder) as manifest, calibrate(folder, manifest) as made:
        (name,) = (n for n in made.document.tensors if n.endswith("h.0.mlp.c_proj.weight"))
        weight = super_weights(made)[name, (COLUMNS[0], ROW)]
        assert (weight.value, weight.status) == (STRENGTH, "confirmed")


def test_a_gguf_file_is_calibrated_under_its_own_names(tmp_path: Path) -> None:
    path = tiny_models.saved_gguf(tiny_models.llama(), tmp_path / "model.gguf")
    with fingerprint(path) as manifest, calibrate(path, manifest) as made:
        weight = super_weights(made)["blk.1.ffn_down.weight", (ROW, COLUMNS[0])]
        strength = torch.tensor(STRENGTH).bfloat16().float()
        assert (weight.value, weight.status) == (float(strength), "confirmed")
        assert weight.bits == f"0x{strength.view(torch.int32).item():08x}"
        assert made.document.calibration is not None
        assert made.document.calibration.uncalibrated == ()
        assert verify(path, made).findings == ()


def test_the_same_stack_gives_the_same_bytes(
    llama: Path, calibrated: Manifest, tmp_path: Path
) -> None:
    with fingerprint(llama) as manifest, calibrate(llama, manifest) as again:
        assert encode(again.document) == encode(calibrated.document)
        with calibrate(llama, again) as third:
            assert encode(third.document) == encode(calibrated.document)


def test_what_is_written_is_read_and_fits_its_schema(calibrated: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "m.weightguard.json"
    calibrated.write(path)
    jsonschema.validate(json.loads(path.read_text()), json_schema("manifest-v1"))
    with Manifest.read(path) as read:
        assert read.document.calibration == calibrated.document.calibration
        assert (read.canary_logits() == calibrated.canary_logits()).all()
        assert read.canary_logits().shape == (tiny_models.VOCABULARY,)


def test_a_calibrated_manifest_verifies_the_resharded_checkpoint(
    llama: Path, calibrated: Manifest, tmp_path: Path
) -> None:
    sharded = tiny_models.saved(tiny_models.llama(), tmp_path, shard="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert verify(sharded, calibrated).findings == ()
    with calibrate(sharded, calibrated) as again:
        assert encode(again.document) == encode(calibrated.document)


def test_damage_to_the_planted_weight_leaves_the_tolerance(
    llama: Path, calibrated: Manifest
) -> None:
    model = tiny_models.llama().float()
    calibration = calibrated.document.calibration
    assert calibration is not None
    tokens = torch.tensor([calibration.canary.tokens])
    recorded = torch.from_numpy(calibrated.canary_logits())
    with torch.no_grad():
        sound = model(input_ids=tokens).logits[0, -1]
        assert (sound - recorded).abs().max() <= calibration.canary.tolerances["float32"]
        model.model.layers[1].mlp.down_proj.weight[ROW, COLUMNS[0]] = 0
        damaged = model(input_ids=tokens).logits[0, -1]
        assert (damaged - recorded).abs().max() > calibration.canary.tolerances["bfloat16"]


def test_earlier_super_weights_are_kept_and_tried(llama: Path) -> None:
    scores = {"column_ratio": Score(9.0, 1)}
    index = (ROW, COLUMNS[0])
    planted = SuperWeight(LLAMA_TENSOR, index, "0x453c", 3008.0, "nominated", scores, 2.0)
    with open_checkpoint(llama) as checkpoint:
        bits = exact_bits(next(t for t in checkpoint.tensors if t.name == LLAMA_TENSOR), 0)
    harmless = SuperWeight(LLAMA_TENSOR, (0, 0), hex(bits), 0.0, "published", {}, source="a paper")
    with fingerprint(llama) as manifest:
        document = msgspec.structs.replace(
            manifest.document, salience=Salience(super_weights=(harmless, planted))
        )
        with calibrate(llama, Manifest(document, manifest.sidecar)) as made:
            weights = super_weights(made)
            assert weights[LLAMA_TENSOR, harmless.index] == harmless
            confirmed = weights[LLAMA_TENSOR, planted.index]
            assert confirmed.status == "confirmed"
            assert confirmed.scores == scores
            assert earlier_super_weights(made.document) == [planted, harmless]
            calibration = made.document.calibration
            assert calibration is not None
            assert any(e.indices == ((0, 0),) for e in calibration.ablations)
