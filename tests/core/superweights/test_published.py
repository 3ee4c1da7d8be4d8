"""Published super weights: judged where there is evidence of descent, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.checkpoints import write_safetensors
from tests.language_models import (
    COMPANION,
    HEAVY_ROW,
    HIDDEN,
    LAYERS,
    SUPER_WEIGHT,
    UNITS,
    VOCABULARY,
    Plant,
    llama,
    stored,
)
from weightguard import open_checkpoint
from weightguard.scan.stream import scan_tensors
from weightguard.superweights.published import (
    Base,
    Lineage,
    PublishedWeight,
    Registry,
    load_registry,
)
from weightguard.survey import Survey

BASE = Base(
    "somebody/tiny", ("tiny-7",), LAYERS, HIDDEN, UNITS, VOCABULARY, {"model_type": "llama"},
    "paper", (PublishedWeight(2, HEAVY_ROW, 77, 6.0), PublishedWeight(2, HEAVY_ROW, 41)),
)  # fmt: skip
REGISTRY = Registry({"paper": "a paper"}, (BASE,))


def lineages(
    tmp_path: Path,
    *plants: Plant,
    heavy: bool = True,
    config: dict[str, object] | None = None,
    names: tuple[str, ...] = (),
    seed: int = 0,
) -> tuple[Lineage, ...]:
    return found_in(tmp_path, llama(*plants, heavy=heavy, seed=seed), config, names)


def found_in(
    tmp_path: Path,
    arrays: dict[str, NDArray[np.float32]],
    config: dict[str, object] | None = None,
    names: tuple[str, ...] = (),
) -> tuple[Lineage, ...]:
    tensors = stored(arrays)
    with open_checkpoint(write_safetensors(tmp_path / "m.safetensors", tensors)) as checkpoint:
        survey = Survey(checkpoint.tensors, REGISTRY)
        scan_tensors(checkpoint.tensors, survey.observers, digest=None)
        return survey.conclude(config, names).lineages


def states(found: tuple[Lineage, ...]) -> list[str]:
    (lineage,) = found
    return [weight.state for weight in lineage.weights]


def test_weights_in_place_are_alive(tmp_path: Path) -> None:
    found = lineages(tmp_path, SUPER_WEIGHT, COMPANION)
    assert states(found) == ["alive", "alive"]
    assert "2 of 2" in found[0].evidence


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (0.0, "lost"), (-1e-30, "lost"), (0.5, "lost"), (-0.5, "lost"), (-6.0, "flipped"),
        (float("nan"), "not-finite"), (float("inf"), "not-finite"), (3.0, "shrunk"),
        (5.5, "alive"), (24.0, "alive"), (100.0, "grown"),
    ],
)  # fmt: skip
def test_what_happened_to_a_weight_of_known_value(tmp_path: Path, value: float, state: str) -> None:
    plants = replace(SUPER_WEIGHT, value=value), COMPANION
    assert states(lineages(tmp_path, *plants)) == [state, "alive"]


def test_a_clipped_weight_of_unknown_value(tmp_path: Path) -> None:
    plants = SUPER_WEIGHT, replace(COMPANION, value=0.1)
    assert states(lineages(tmp_path, *plants)) == ["alive", "shrunk"]


def test_a_weight_of_unknown_value_that_is_all_but_zero(tmp_path: Path) -> None:
    plants = SUPER_WEIGHT, replace(COMPANION, value=1e-30)
    assert states(lineages(tmp_path, *plants)) == ["alive", "lost"]


def test_a_weight_of_another_value_is_not_shown_as_the_published_one(tmp_path: Path) -> None:
    (found,) = lineages(tmp_path, replace(SUPER_WEIGHT, value=24.0), COMPANION)
    assert [w.is_published for w in found.weights] == [False, True]


def test_the_heavy_row_is_evidence_when_every_weight_is_gone(tmp_path: Path) -> None:
    plants = replace(SUPER_WEIGHT, value=0), replace(COMPANION, value=0)
    found = lineages(tmp_path, *plants)
    assert states(found) == ["lost", "lost"]
    assert "outlier of 4 of 4" in found[0].evidence


@pytest.mark.parametrize("heavy", [("mlp.down_proj",), ("self_attn.o_proj",)])
def test_a_row_that_is_heavy_in_one_kind_of_tensor_is_no_evidence(
    tmp_path: Path, heavy: tuple[str, ...]
) -> None:
    arrays = llama(heavy=False)
    for name, values in arrays.items():
        if any(f".{kind}.weight" in name for kind in heavy):
            values[HEAVY_ROW] *= 8
    assert found_in(tmp_path, arrays) == ()


def test_a_name_is_evidence(tmp_path: Path) -> None:
    assert lineages(tmp_path, heavy=False) == ()
    found = lineages(tmp_path, heavy=False, names=("Some Tiny-7 chat",))
    assert "calls itself" in found[0].evidence


def test_equal_shapes_alone_are_none(tmp_path: Path) -> None:
    claimed = [bool(lineages(tmp_path, heavy=False, seed=seed)) for seed in range(20)]
    assert not any(claimed)


def test_another_configuration_is_another_model(tmp_path: Path) -> None:
    config: dict[str, object] = {"model_type": "qwen2"}
    assert lineages(tmp_path, SUPER_WEIGHT, COMPANION, config=config) == ()
    config = {"model_type": "llama"}
    assert lineages(tmp_path, SUPER_WEIGHT, COMPANION, config=config)


def test_the_registry_that_ships() -> None:
    registry = load_registry()
    assert len(registry.bases) == 10
    for base in registry.bases:
        assert base.source in registry.sources
        assert all(w.layer < base.layers for w in base.weights)
        assert all(w.row < base.hidden and w.column < base.intermediate for w in base.weights)
        assert all(name == name.lower() for name in base.names)
