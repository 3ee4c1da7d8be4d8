"""load_verified_model: a model of the bytes that were hashed, of no second reading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import torch
from transformers import AutoModelForCausalLM

from tests.integrations.torch.tiny_models import llama, saved
from weightguard import IntegrityError, WeightguardError, fingerprint
from weightguard_integrations.torch import guard, load_verified_model


def test_runs_as_the_saved_model_and_is_attested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(llama(), tmp_path / "m", shard="50KB")
    manifest = fingerprint(folder)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(ids).logits

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("weights are opened again")

    monkeypatch.setattr(safetensors, "safe_open", refused)
    monkeypatch.setattr("transformers.modeling_utils.safe_open", refused)
    model = load_verified_model(folder, manifest)
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"")  # private memory: nothing of it changes with the files
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)
    with guard(model, manifest, scrub=None) as watched:
        assert watched.coverage().attested >= sum(p.nbytes for p in model.parameters())


def test_a_flip_gives_no_model(tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path / "m")
    manifest = fingerprint(folder)
    (file,) = folder.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-100] ^= 4
    file.write_bytes(data)
    with pytest.raises(IntegrityError):
        load_verified_model(folder, manifest)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (4, "missing or of another shape"),
        (1, "the model of config.json has no place for 18 weights"),
    ],
)
def test_no_part_is_made_up_or_left_out(tmp_path: Path, layers: int, said: str) -> None:
    folder = saved(llama(), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with pytest.raises(WeightguardError, match=said):
        load_verified_model(folder, fingerprint(folder))
