"""A manifest takes in what running the model taught, and keeps everything else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import (
    Manifest,
    ManifestError,
    SuperWeight,
    audit,
    fingerprint,
    open_checkpoint,
    verify,
)
from weightguard.calibration import Calibration, Canary, FalseAlarms, Probe, PromptCount, Stack
from weightguard.manifest import encode
from weightguard.scan.values import exact_bits

CALIBRATION = Calibration(
    stack=Stack("2.13.0", "5.23.0", "cpu", "AVX512", "float32", 2),
    prompts="built-in",
    baseline_loss=3.5,
    confirmation_threshold=0.1,
    ablations=(),
    uncalibrated=(),
    massive_activations=(),
    activation_bounds=(1.0, 2.0),
    false_alarms=FalseAlarms(100, 0, {"code": PromptCount(10, 0)}),
    canary=Canary((1, 2, 3), 4.5, {"threads": 0.1}, {"float32": 0.25}),
    probes=(Probe("code", (1, 2), (3.0, 4.0)),),
)
SUPER_WEIGHT = SuperWeight("w", (0, 1), "0x40bc", 5.875, "confirmed", {}, loss_change=8.3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tensors = {"w": random_tensor("BF16", (70, 64)), "empty": random_tensor("F32", (0, 5))}
    return write_safetensors(tmp_path / "m.safetensors", tensors)


def test_a_calibrated_manifest_survives_writing_and_verifies(
    tmp_path: Path, checkpoint: Path
) -> None:
    logits = np.arange(50, dtype=np.float32)
    path = tmp_path / "m.weightguard.json"
    with fingerprint(checkpoint) as plain:
        with plain.calibrated(CALIBRATION, (SUPER_WEIGHT,), logits) as calibrated:
            calibrated.write(path)
        for number in range(2):
            for array in ("blocks", "residues", "row_absmax"):
                name = f"{number}/{array}"
                assert (plain.sidecar.read(name) == calibrated_array(path, name)).all()
    with Manifest.read(path) as read:
        assert read.document.calibration == CALIBRATION
        assert read.document.salience.super_weights == (SUPER_WEIGHT,)
        assert (read.canary_logits() == logits).all()
        found = verify(checkpoint, read).findings
        assert [f.rule for f in found] == ["WG305"]
        again = read.calibrated(CALIBRATION, (), logits[:7])
        assert len(again.canary_logits()) == 7
        again.close()


def calibrated_array(path: Path, name: str) -> np.ndarray:
    with Manifest.read(path) as manifest:
        return np.asarray(manifest.sidecar.read(name))


def test_a_plain_manifest_has_no_canary(checkpoint: Path) -> None:
    with fingerprint(checkpoint) as manifest, pytest.raises(ManifestError, match="calibrate"):
        manifest.canary_logits()


def test_a_calibration_without_its_logits_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "m.weightguard.json"
    with fingerprint(checkpoint) as manifest:
        manifest.write(path)
    with (
        Manifest.read(path) as plain,
        plain.calibrated(CALIBRATION, (), np.zeros(5, np.float32)) as calibrated,
    ):
        document = encode(calibrated.document)
    path.write_bytes(document.replace(b"unwritten.sidecar", plain.document.sidecar.name.encode()))
    with pytest.raises(ManifestError, match="not the one"):
        Manifest.read(path)


def test_an_audit_shows_what_its_manifest_says_is_confirmed(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as opened:
        tensor = next(t for t in opened.tensors if t.name == "w")
        bits = exact_bits(tensor, tensor.element((0, 1)))
    sound = msgspec.structs.replace(SUPER_WEIGHT, bits=f"{bits:#06x}")
    changed = msgspec.structs.replace(SUPER_WEIGHT, index=(0, 2), bits=f"{bits ^ 1:#06x}")
    with (
        fingerprint(checkpoint) as plain,
        plain.calibrated(CALIBRATION, (sound, changed), np.zeros(5, np.float32)) as calibrated,
    ):
        found = audit(checkpoint, manifest=calibrated).salience
    assert found is not None
    assert found.super_weights == (sound,)
