"""load_verified: what is returned is what was hashed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from weightguard import IntegrityError, Manifest, WeightguardError, fingerprint
from weightguard.checkpoint.files import CheckpointFile
from weightguard_integrations.torch import load_verified


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tensors = {
        "big": torch.randn(700, 900).to(torch.bfloat16),
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False] * 40),
        "narrow": torch.randn(70, 66).to(torch.float8_e4m3fn),
        "ids": torch.arange(65),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.fixture
def manifest(weights: Path) -> Manifest:
    return fingerprint(weights)


def test_equals_what_other_loaders_read(weights: Path, manifest: Manifest) -> None:
    loaded, expected = load_verified(weights, manifest), load_file(weights)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        same = (t.reshape(-1).view(torch.uint8) for t in (loaded[name], tensor))
        assert torch.equal(*same), name


def test_the_file_may_change_afterwards(weights: Path, manifest: Manifest) -> None:
    loaded = load_verified(weights, manifest)
    before = loaded["big"].clone()
    data = weights.read_bytes()
    with weights.open("r+b") as file:
        file.seek(len(data) // 2)
        file.write(b"\xff" * 1000)
    assert torch.equal(loaded["big"], before)


def test_a_changed_file_gives_no_tensors_but_the_report(weights: Path, manifest: Manifest) -> None:
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        load_verified(weights, manifest)
    (found,) = caught.value.report.findings
    assert found.rule == "WG401"
    assert found.location.element is not None


def test_a_file_that_changes_while_it_is_read_is_no_race(
    weights: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a read returns is both hashed and kept; a second read of the file never happens."""
    read_into = CheckpointFile.read_into

    def swapped(self: CheckpointFile, offset: int, buffer: memoryview) -> None:
        read_into(self, offset, buffer)
        if len(buffer) > 8000:
            with weights.open("r+b") as file:
                file.seek(offset)
                file.write(bytes(len(buffer)))

    expected = load_file(weights)["big"].clone()
    monkeypatch.setattr(CheckpointFile, "read_into", swapped)
    loaded = load_verified(weights, manifest)
    assert torch.equal(loaded["big"], expected)


def test_an_extra_tensor_is_not_loaded(weights: Path, manifest: Manifest) -> None:
    save_file({**load_file(weights), "more": torch.ones(3)}, weights)
    with pytest.raises(IntegrityError) as caught:
        load_verified(weights, manifest)
    assert [f.rule for f in caught.value.report.findings] == ["WG403"]


def test_a_format_of_its_own_is_refused(tmp_path: Path) -> None:
    from tests.checkpoints import random_tensor, write_safetensors

    path = write_safetensors(tmp_path / "f.safetensors", {"a": random_tensor("F4", (64, 64))})
    with pytest.raises(WeightguardError, match="no dtype for"):
        load_verified(path, fingerprint(path))
