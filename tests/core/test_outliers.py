"""Outlier channels: heavy rows and columns, and those that recur in the residual stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import write_safetensors
from tests.language_models import HEAVY_ROW, LAYERS, llama, stored
from tests.real_models import smollm2_bf16
from weightguard import Salience, fingerprint
from weightguard.outliers import MAX_CHANNELS, MAX_PER_AXIS, MIN_HEAVINESS


def salience(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Salience:
    with fingerprint(write_safetensors(tmp_path / "m.safetensors", stored(arrays))) as manifest:
        return manifest.document.salience


def test_a_heavy_row_and_a_heavy_column_are_named(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (200, 128)).astype(np.float32)
    values[17] *= 8
    values[:, 90] *= 6
    found = salience(tmp_path, {"w": values}).outlier_channels
    assert [(c.axis, c.index) for c in found] == [("row", 17), ("column", 90)]
    assert all(c.heaviness >= MIN_HEAVINESS for c in found)
    assert found[0].value == pytest.approx(np.abs(values[17]).max(), rel=0.01)


def test_a_tensor_of_outliers_names_the_heaviest(tmp_path: Path) -> None:
    values = np.ones((400, 128), np.float32)
    values[100:140, 5:7] = np.linspace(5, 50, 40, dtype=np.float32)[:, None]
    found = salience(tmp_path, {"w": values}).outlier_channels
    rows = [c.index for c in found if c.axis == "row"]
    assert rows == list(range(139, 139 - MAX_PER_AXIS, -1))


def test_a_channel_that_recurs(tmp_path: Path) -> None:
    (channel,) = salience(tmp_path, llama()).recurring_channels
    assert (channel.channel, channel.tensors) == (HEAVY_ROW, 2 * LAYERS)
    assert channel.layers == tuple(range(LAYERS))


def test_uniform_weights_have_no_outliers(tmp_path: Path) -> None:
    found = salience(tmp_path, llama(heavy=False))
    assert found.outlier_channels == ()
    assert found.recurring_channels == ()


@pytest.mark.parametrize("shape", [(3, 100), (5000,), (40, 3, 3)])
def test_what_is_no_matrix_has_no_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.ones(shape, np.float32)
    values.ravel()[7] = 1e4
    rows = [c for c in salience(tmp_path, {"w": values}).outlier_channels if c.axis == "row"]
    assert rows == []


@pytest.mark.real
def test_the_residual_channel_of_a_real_model() -> None:
    with fingerprint(smollm2_bf16()) as manifest:
        found = manifest.document.salience
    assert found.recurring_channels[0].channel == 507
    assert found.recurring_channels[0].tensors == 23
    assert 0 < len(found.outlier_channels) <= MAX_CHANNELS
