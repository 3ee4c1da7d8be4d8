"""WG208: shapes beside config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import audit

CONFIG = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}
SHAPES = {
    "model.embed_tokens.weight": (100, 64),
    "model.layers.0.mlp.down_proj.weight": (64, 96),
    "model.layers.0.mlp.up_proj.weight": (96, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.self_attn.k_proj.weight": (32, 64),
    "model.norm.weight": (64,),
}


def rules(folder: Path, config: dict[str, Any]) -> list[tuple[str, str | None]]:
    tensors = {name: random_tensor("BF16", shape, 1) for name, shape in SHAPES.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return [(found.rule, found.location.tensor) for found in audit(folder).findings]


def test_matching_config_is_clean(tmp_path: Path) -> None:
    assert rules(tmp_path, CONFIG) == []


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        ({"vocab_size": 101}, "model.embed_tokens.weight"),
        ({"num_key_value_heads": 4}, "model.layers.0.self_attn.k_proj.weight"),
        ({"num_hidden_layers": 2}, None),
    ],
)
def test_contradictions_are_found(
    tmp_path: Path, change: dict[str, Any], tensor: str | None
) -> None:
    assert rules(tmp_path, CONFIG | change) == [("WG208", tensor)]


@pytest.mark.parametrize(
    "config",
    [
        CONFIG | {"vocab_size": 7, "quantization_config": {"bits": 4}},
        CONFIG | {"vocab_size": 7, "model_type": "unheard-of"},
        CONFIG | {"vocab_size": "seven"},
        CONFIG | {"num_hidden_layers": None},
    ],
)
def test_unknown_sizes_are_left_alone(tmp_path: Path, config: dict[str, Any]) -> None:
    assert rules(tmp_path, config) == []
