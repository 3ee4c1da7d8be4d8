"""Nomination finds planted and real super weights, and says no more than that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import write_safetensors
from tests.language_models import COMPANION, HIDDEN, SUPER_WEIGHT, UNITS, llama, stored
from tests.real_models import smollm2_bf16, smollm2_gguf
from weightguard import SuperWeight, fingerprint
from weightguard.superweights.nominate import MIN_COLUMN_RATIO, TOP

PLACE = ("model.layers.2.mlp.down_proj.weight", (SUPER_WEIGHT.row, SUPER_WEIGHT.column))


def nominated(path: Path, arrays: dict[str, np.ndarray], dtype: str = "BF16") -> list[SuperWeight]:
    with fingerprint(write_safetensors(path / "m.safetensors", stored(arrays, dtype))) as manifest:
        return list(manifest.document.salience.super_weights)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_planted_super_weight_ranks_first(tmp_path: Path, dtype: str) -> None:
    first, second, *_ = nominated(tmp_path, llama(SUPER_WEIGHT, COMPANION), dtype)
    assert (first.tensor, first.index) == PLACE
    assert (first.value, first.status) == (SUPER_WEIGHT.value, "nominated")
    assert first.scores["column_ratio"].rank == 1
    assert second.index == (COMPANION.row, COMPANION.column)
    assert second.value == COMPANION.value


def test_scores_are_those_of_their_definition(tmp_path: Path) -> None:
    arrays = llama(SUPER_WEIGHT)
    norm = np.linspace(0.5, 2, HIDDEN, dtype=np.float32)
    arrays["model.layers.2.post_attention_layernorm.weight"] = norm
    (first, *_) = nominated(tmp_path, arrays, "F32")
    down = arrays[PLACE[0]].astype(np.float64)
    others = np.delete(down[:, SUPER_WEIGHT.column], SUPER_WEIGHT.row)
    up, gate = (
        arrays[f"model.layers.2.mlp.{name}.weight"][SUPER_WEIGHT.column].astype(np.float64) * norm
        for name in ("up_proj", "gate_proj")
    )
    norms = np.linalg.norm(down, axis=1)
    assert first.scores["column_ratio"].score == pytest.approx(
        6 / np.sqrt(np.square(others).mean()), rel=1e-3
    )
    assert first.scores["path_gain"].score == pytest.approx(6 * abs(up @ gate), rel=1e-3)
    assert first.row_heaviness == pytest.approx(norms[23] / np.median(norms), rel=0.02)


def test_path_gain_finds_what_a_strong_unit_feeds(tmp_path: Path) -> None:
    arrays = llama(SUPER_WEIGHT, COMPANION)
    for name in ("up_proj", "gate_proj"):
        arrays[f"model.layers.2.mlp.{name}.weight"][COMPANION.column] = 0.7
    first = nominated(tmp_path, arrays)[0]
    found = {w.index: w.scores for w in nominated(tmp_path, arrays)}
    assert found[COMPANION.row, COMPANION.column]["path_gain"].rank == 1
    assert 1 in {score.rank for score in first.scores.values()}


def test_several_super_weights_of_one_column_are_all_named(tmp_path: Path) -> None:
    down = np.random.default_rng(0).standard_normal((1500, 100), np.float32) * np.float32(0.05)
    for row, value in ((5, 6.0), (400, -4.0), (1490, 3.5)):
        down[row, 99] = value
    places = [w.index for w in nominated(tmp_path, {"layers.1.mlp.down_proj.weight": down})]
    assert places == [(5, 99), (400, 99), (1490, 99)]


def test_ordinary_weights_are_not_nominated(tmp_path: Path) -> None:
    assert nominated(tmp_path, llama(heavy=False)) == []


def test_a_transposed_projection(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    stack = generator.standard_normal((UNITS, HIDDEN), np.float32) * np.float32(0.05)
    stack[33, 7] = 4
    arrays = {"h.0.mlp.c_proj.weight": stack, "h.0.mlp.c_fc.weight": stack.T.copy()}
    (found,) = nominated(tmp_path, arrays)
    assert (found.index, found.value) == ((33, 7), 4)


def test_stacked_experts_are_told_apart(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)

    def weight(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, np.float32) * np.float32(0.05)

    down, fused = weight(3, HIDDEN, UNITS), weight(3, 2 * UNITS, HIDDEN)
    down[2, 10, 20] = 5
    arrays = {
        "model.layers.0.mlp.experts.down_proj": down,
        "model.layers.0.mlp.experts.gate_up_proj": fused,
    }
    (found,) = nominated(tmp_path, arrays, "F32")
    assert found.index == (2, 10, 20)
    gain = 5 * abs(fused[2, 20].astype(float) @ fused[2, UNITS + 20].astype(float))
    assert found.scores["path_gain"].score == pytest.approx(gain, rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_break_nothing(tmp_path: Path, value: float) -> None:
    arrays = llama(SUPER_WEIGHT)
    arrays[PLACE[0]][3] = value
    arrays["model.layers.2.mlp.up_proj.weight"][SUPER_WEIGHT.column, 0] = value
    (first, *_) = nominated(tmp_path, arrays, "F32")
    assert (first.tensor, first.index) == PLACE
    assert "path_gain" not in first.scores


@pytest.mark.real
@pytest.mark.parametrize("model", ["bf16", "gguf"])
def test_the_super_weights_of_a_real_model_rank_as_measured(model: str) -> None:
    path = smollm2_bf16() if model == "bf16" else smollm2_gguf()
    with fingerprint(path) as manifest:
        weights = manifest.document.salience.super_weights
    ranks = {
        (w.tensor, w.index): {name: score.rank for name, score in w.scores.items()} for w in weights
    }
    name = "model.layers.{}.mlp.down_proj.weight" if model == "bf16" else "blk.{}.ffn_down.weight"
    assert ranks[name.format(11), (507, 1229)] == {"column_ratio": 1, "path_gain": 2}
    assert ranks[name.format(11), (507, 1487)] == {"column_ratio": 3, "path_gain": 3}
    assert ranks[name.format(28), (507, 678)] == {"column_ratio": 2, "path_gain": 1}
    assert len(weights) <= 2 * TOP
    assert all(w.scores["column_ratio"].score >= MIN_COLUMN_RATIO for w in weights)
