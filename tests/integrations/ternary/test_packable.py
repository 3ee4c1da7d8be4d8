"""Tables and transposed matrices are refused before anything is read or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.checkpoints import write_safetensors
from weightguard import WeightguardError
from weightguard_cli.main import main
from weightguard_integrations.ternary.layers import load_ternary
from weightguard_integrations.ternary.ternarize import ternarize

TEXT = {"text_config": {"vocab_size": 40}}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("model.embed_tokens.weight", {}, "is a table"),
    ("bert.embeddings.word_embeddings.weight", {}, "is a table"),
    ("token_embd.weight", {}, "is a table"),
    ("transformer.wte.weight", {}, "is a table"),
    ("transformer.wpe.weight", {}, "is a table"),
    ("shared.weight", {}, "is a table"),
    ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", {}, "is a table"),
    ("model.words.weight", {"vocab_size": 40}, "each of the 40 tokens"),
    ("model.words.weight", TEXT, "each of the 40 tokens"),
    ("lm_head.weight", {"vocab_size": 40, "tie_word_embeddings": True}, "tied to the embedding"),
    ("h.0.attn.c_attn.weight", {"model_type": "gpt2"}, "as [inputs, outputs] in a gpt2"),
]
PACKED: list[tuple[str, dict[str, Any]]] = [
    ("lm_head.weight", {"vocab_size": 40}),
    ("embed_out.weight", {"vocab_size": 40}),
    ("model.layers.0.mlp.up_proj.weight", {"vocab_size": 40}),
    ("model.layers.0.mlp.up_proj.weight", {"vocab_size": "40", "tie_word_embeddings": True}),
    ("h.0.attn.c_attn.weight", {"model_type": "gpt_bigcode"}),
    ("model.words.weight", {}),
    ("model.embed_vision.embedding_projection.weight", {}),
]


def folder_of(folder: Path, name: str, config: dict[str, Any]) -> Path:
    folder.mkdir()
    values = np.random.default_rng(1).standard_normal((40, 30), np.float32)
    write_safetensors(folder / "model.safetensors", {name: ("F32", (40, 30), values.tobytes())})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("name", "config", "words"), REFUSED)
def test_what_is_not_multiplied_with_is_refused(
    name: str, config: dict[str, Any], words: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source, out = folder_of(tmp_path / "source", name, config), tmp_path / "out"
    assert main(["ternarize", str(source), "-o", str(out), "--layers", "*"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert name in said
    assert words in said
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(("name", "config"), PACKED)
def test_what_is_multiplied_with_is_packed(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    made = ternarize(folder_of(tmp_path / "source", name, config), tmp_path / "out", layers="*")
    assert made.layers == (name,)


def test_another_name_of_a_table_is_refused(tmp_path: Path) -> None:
    table = torch.ones(40, 30)
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a.linear.weight": table, "z.wte.weight": table}, path)
    with pytest.raises(WeightguardError, match=r"z\.wte.*looked up"):
        ternarize(path, tmp_path / "out", layers="a.*")


def test_a_real_gpt2_is_refused_at_once(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=90, n_embd=64, n_layer=1, n_head=4, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "source")
    for layers in ("*wte.weight", "*wpe.weight", "*c_fc.weight"):
        with pytest.raises(WeightguardError, match="Name layers without it"):
            ternarize(tmp_path / "source", tmp_path / "out", layers=layers)


def test_a_head_that_the_model_ties_is_refused_when_loaded(tmp_path: Path) -> None:
    """Its table would be gone from under it."""
    config = LlamaConfig(
        vocab_size=90, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    ternarize(tmp_path / "source", tmp_path / "out", layers="lm_head.weight")
    assert load_ternary(tmp_path / "out")(torch.arange(5)[None]).logits.shape == (1, 5, 90)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    with pytest.raises(WeightguardError, match=r"lm_head\.weight' is tied"):
        load_ternary(tmp_path / "out")
