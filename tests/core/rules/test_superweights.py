"""WG3xx on damaged copies of a real model and of a planted one, and silence on sound ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import write_safetensors
from tests.language_models import COMPANION, SUPER_WEIGHT, llama, stored
from tests.real_models import smollm2_bf16, smollm2_gguf
from weightguard import Finding, audit, fingerprint, open_checkpoint, verify

NAME = "model.layers.11.mlp.down_proj.weight"
UNITS = 1536


def rules(findings: tuple[Finding, ...]) -> list[str]:
    return [found.rule for found in findings]


@pytest.fixture
def smollm2(tmp_path: Path) -> Path:
    return Path(shutil.copyfile(smollm2_bf16(), tmp_path / "model.safetensors"))


def write_bits(path: Path, row: int, column: int, bits: int) -> None:
    with open_checkpoint(path) as checkpoint:
        tensor = next(t for t in checkpoint.tensors if t.name == NAME)
    assert tensor.offset is not None
    with path.open("r+b") as file:
        file.seek(tensor.offset + 2 * (row * UNITS + column))
        file.write(bits.to_bytes(2, "little"))


@pytest.mark.real
@pytest.mark.parametrize(
    ("bits", "rule"),
    [(0x0000, "WG301"), (0x8000, "WG301"), (0x7FC0, "WG301"), (0xFF80, "WG301"),
     (0xC0BC, "WG302"), (0x3E80, "WG301"), (0x4000, "WG303"), (0x4348, "WG303")],
)  # fmt: skip
def test_a_damaged_super_weight_is_found_without_a_manifest(
    smollm2: Path, bits: int, rule: str
) -> None:
    write_bits(smollm2, 507, 1229, bits)
    findings = {found.rule: found for found in audit(smollm2).findings}
    assert findings.pop(rule).location.element == (507, 1229)
    assert set(findings) <= {"WG201", "WG202"}


@pytest.mark.real
def test_both_super_weights_gone(smollm2: Path) -> None:
    write_bits(smollm2, 507, 1229, 0)
    write_bits(smollm2, 507, 1487, 0)
    findings = audit(smollm2).findings
    assert rules(findings) == ["WG301", "WG301"]
    assert "outlier of 15 of 30" in findings[0].evidence["lineage"]
    assert findings[0].location.offset is not None


@pytest.mark.real
def test_with_a_manifest_super_weights_and_channels_are_compared(smollm2: Path) -> None:
    with fingerprint(smollm2) as manifest:
        write_bits(smollm2, 507, 1229, 0x40BD)
        found = verify(smollm2, manifest).findings
        assert rules(found) == ["WG305", "WG401"]
        assert found[0].evidence["old_bits"] == "0x40bc"
        assert found[0].severity == "critical"
        assert found[0].location.offset == found[1].location.offset
        write_bits(smollm2, 507, 1487, 0)
        write_bits(smollm2, 507, 1229, 0)
        found = verify(smollm2, manifest).findings
    assert rules(found) == ["WG305", "WG305", "WG401"]


@pytest.mark.real
def test_a_channel_is_told_of_where_no_super_weight_explains_it(smollm2: Path) -> None:
    with fingerprint(smollm2) as manifest:
        write_bits(smollm2, 507, 5, 0x4200)
        found = verify(smollm2, manifest).findings
    assert rules(found) == ["WG401", "WG306"]
    assert found[1].location.row == 507
    assert found[1].evidence["old_bits"] == "0x40c2"
    assert "from 6.0625 to 32" in found[1].message


def test_a_changed_nominee_is_an_error_not_more(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    arrays = llama(SUPER_WEIGHT, COMPANION)
    with fingerprint(write_safetensors(path, stored(arrays))) as manifest:
        arrays["model.layers.2.mlp.down_proj.weight"][SUPER_WEIGHT.row, SUPER_WEIGHT.column] = 5
        write_safetensors(path, stored(arrays))
        found = {f.rule: f for f in verify(path, manifest).findings}
    assert found["WG305"].severity == "error"
    assert "WG306" not in found


def test_unrelated_changes_leave_super_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    arrays = llama(SUPER_WEIGHT)
    with fingerprint(write_safetensors(path, stored(arrays))) as manifest:
        arrays["model.layers.2.mlp.down_proj.weight"][3, 4] = 0
        write_safetensors(path, stored(arrays))
        assert rules(verify(path, manifest).findings) == ["WG401"]


def test_a_scale_that_swallows_its_block_is_worth_a_word(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    arrays = llama(SUPER_WEIGHT, heavy=False)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    for name in ("down_proj", "up_proj", "gate_proj"):
        values = arrays[f"model.layers.2.mlp.{name}.weight"]
        kind = GGMLQuantizationType.Q4_0
        writer.add_tensor(
            f"blk.2.ffn_{name.removesuffix('_proj')}.weight", quantize(values, kind), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    findings = audit(tmp_path / "m.gguf").findings
    assert {f.rule for f in findings} == {"WG304"}
    assert all(f.severity == "info" for f in findings)


@pytest.mark.real
def test_sound_models_give_no_finding() -> None:
    for path in (smollm2_bf16(), smollm2_gguf()):
        assert audit(path, select=["WG3"]).findings == ()


def test_selection_leaves_the_survey_out(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", stored(llama(SUPER_WEIGHT)))
    assert audit(path, select=["WG2"]).salience is None
    found = audit(path, select=["WG301"]).salience
    assert found is not None
    assert found.super_weights


def test_the_configuration_has_a_say(tmp_path: Path, smollm2: Path) -> None:
    write_bits(smollm2, 507, 1229, 0)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama"}))
    assert rules(audit(tmp_path, select=["WG3"]).findings) == ["WG301"]
    config.write_text(json.dumps({"model_type": "mistral"}))
    assert audit(tmp_path, select=["WG3"]).findings == ()


def test_numbers_come_out_finite(tmp_path: Path) -> None:
    arrays = llama(SUPER_WEIGHT)
    arrays["model.layers.2.mlp.down_proj.weight"][:, 77] = 0
    arrays["model.layers.2.mlp.down_proj.weight"][5, 77] = np.float32(3e38)
    arrays["model.layers.2.mlp.up_proj.weight"][77] = np.float32(3e38)
    path = write_safetensors(tmp_path / "m.safetensors", stored(arrays, "F32"))
    found = audit(path).salience
    assert found is not None
    scores = [s.score for w in found.super_weights for s in w.scores.values()]
    assert np.isfinite(scores).all()
