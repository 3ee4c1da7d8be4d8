"""Sidecars: written by ranges, read by ranges, valid safetensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import ManifestError, fingerprint
from weightguard.sidecar import Sidecar


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    tensors = {
        "a": random_tensor("BF16", (70, 128), 1),
        "b": random_tensor("F64", (3, 100), 2),
        "c": random_tensor("I8", (5,), 3),
        "empty": random_tensor("F32", (0,), 4),
    }
    with fingerprint(write_safetensors(tmp_path / "m.safetensors", tensors)) as manifest:
        path = manifest.write(tmp_path / "m.weightguard.json")
        arrays = load_file(path)
        assert arrays.keys() == manifest.sidecar.arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(manifest.sidecar.read(name), array)
        np.testing.assert_array_equal(
            manifest.sidecar.read("0/residues", 10, 7), arrays["0/residues"][10:17]
        )


@pytest.mark.parametrize("size", [0, 7, 8, 100])
def test_a_truncated_sidecar_is_an_error(tmp_path: Path, size: int) -> None:
    model = write_safetensors(tmp_path / "m.safetensors", {"a": random_tensor("F32", (64, 64))})
    with fingerprint(model) as manifest:
        path = manifest.write(tmp_path / "m.weightguard.json")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ManifestError, match="sidecar"):
        Sidecar.open(path, path.name)
