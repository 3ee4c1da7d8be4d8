"""Tiny random models with a planted super weight, saved as Hugging Face folders.

The head is so strong that random hidden states cost loss. The planted weight makes one channel
so large that the final norm shrinks all others, and the head does not read that channel: with
the spike the model guesses evenly, without it wildly. Two planted weights do the same work, so
that only zeroing both undoes it.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

VOCABULARY = 256
ROW, COLUMNS = 5, (7, 19)
STRENGTH = 3000.0
HEAD = 40.0


def llama(*, dtype: torch.dtype = torch.bfloat16, twice: bool = False) -> LlamaForCausalLM:
    """Return a Llama of 3 layers; its super weights are W[5, 7] (and W[5, 19]) of layer 1."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight *= 20
            layer.mlp.up_proj.weight *= 20
        mlp = model.model.layers[1].mlp
        for producer in (mlp.gate_proj, mlp.up_proj):
            producer.weight[COLUMNS[1]] = producer.weight[COLUMNS[0]]
        for column in COLUMNS if twice else COLUMNS[:1]:
            mlp.down_proj.weight[ROW, column] = STRENGTH
        model.lm_head.weight *= HEAD
        model.lm_head.weight[:, ROW] = 0
    return model.to(dtype)


def bert_encoder() -> BertModel:
    """Return an encoder of 2 layers: it has no head that predicts tokens."""
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    return BertModel(config)


def gpt2() -> GPT2LMHeadModel:
    """Return a GPT-2 of 2 layers in float32, whose projections are stored transposed."""
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        mlp = model.transformer.h[0].mlp
        mlp.c_fc.weight *= 20
        mlp.c_proj.weight[COLUMNS[0], ROW] = STRENGTH
        model.lm_head.weight *= HEAD
        model.lm_head.weight[:, ROW] = 0
    return model


def saved(model: torch.nn.Module, folder: Path, *, shard: str = "5GB") -> Path:
    """Save a model as a Hugging Face folder and return it."""
    model.save_pretrained(folder, max_shard_size=shard)  # type: ignore[operator]
    return folder


def saved_gguf(model: LlamaForCausalLM, path: Path) -> Path:
    """Save a Llama as a GGUF file in float32, without a tokenizer, and return its path."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        writer.add_tensor(names.get_name(name, (".weight",)), weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
