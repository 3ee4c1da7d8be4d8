"""WG208: tensor shapes beside config.json, for architectures whose sizes it states.

Shapes are those of unquantised checkpoints of the Hugging Face layout; a checkpoint whose
config.json announces a quantisation is left alone, since its packed tensors have other shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from weightguard.checkpoint import Checkpoint
from weightguard.finding import Finding, finding

# tensor name pattern -> expected shape, in terms of config.json's sizes
_DECODER: dict[str, tuple[str, ...]] = {
    r"(model\.)?embed_tokens\.weight|lm_head\.weight": ("vocab_size", "hidden_size"),
    r"(model\.)?layers\.\d+\.mlp\.(gate|up)_proj\.weight": ("intermediate_size", "hidden_size"),
    r"(model\.)?layers\.\d+\.mlp\.down_proj\.weight": ("hidden_size", "intermediate_size"),
    r"(model\.)?layers\.\d+\.self_attn\.q_proj\.weight": ("query_size", "hidden_size"),
    r"(model\.)?layers\.\d+\.self_attn\.[kv]_proj\.weight": ("key_value_size", "hidden_size"),
    r"(model\.)?layers\.\d+\.self_attn\.o_proj\.weight": ("hidden_size", "query_size"),
    r"(model\.)?layers\.\d+\.(input|post_attention)_layernorm\.weight": ("hidden_size",),
    r"(model\.)?norm\.weight": ("hidden_size",),
}
_ENCODER: dict[str, tuple[str, ...]] = {
    r"(bert\.)?embeddings\.word_embeddings\.weight": ("vocab_size", "hidden_size"),
    r"(bert\.)?embeddings\.position_embeddings\.weight": (
        "max_position_embeddings",
        "hidden_size",
    ),
    r"(bert\.)?encoder\.layer\.\d+\.attention\.self\.(query|key|value)\.weight": (
        "hidden_size",
        "hidden_size",
    ),
    r"(bert\.)?encoder\.layer\.\d+\.intermediate\.dense\.weight": (
        "intermediate_size",
        "hidden_size",
    ),
    r"(bert\.)?encoder\.layer\.\d+\.output\.dense\.weight": ("hidden_size", "intermediate_size"),
}
_SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "smollm3": _DECODER,
    "bert": _ENCODER,
}
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer)\.(\d{1,6})\.")


def check_config(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Yield a finding for each tensor whose shape contradicts config.json."""
    config = checkpoint.config
    if config is None or "quantization_config" in config or checkpoint.format == "gguf":
        return
    shapes = _SHAPES.get(str(config.get("model_type")))
    if shapes is None:
        return
    sizes = _sizes(config)
    patterns = [(re.compile(pattern), names) for pattern, names in shapes.items()]
    for tensor in checkpoint.tensors:
        names = next((n for p, n in patterns if p.fullmatch(tensor.name[:1000])), None)
        if names is None or any(name not in sizes for name in names):
            continue
        expected = tuple(sizes[name] for name in names)
        if tensor.shape != expected:
            yield finding(
                "WG208",
                f"shape is {list(tensor.shape)}, but config.json says "
                f"{' x '.join(names)} = {list(expected)}",
                file=tensor.shard,
                tensor=tensor.name,
            )
    yield from _check_depth(checkpoint, sizes)


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes that config.json states, with the derived attention sizes."""
    sizes = {
        key: value
        for key, value in config.items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 0
    }
    heads, hidden = sizes.get("num_attention_heads"), sizes.get("hidden_size")
    if heads and hidden:
        head = sizes.get("head_dim", hidden // heads)
        sizes["query_size"] = heads * head
        sizes["key_value_size"] = sizes.get("num_key_value_heads", heads) * head
    return sizes


def _check_depth(checkpoint: Checkpoint, sizes: Mapping[str, int]) -> Iterator[Finding]:
    stated = sizes.get("num_hidden_layers")
    found = {int(m[1]) for t in checkpoint.tensors if (m := _LAYER.search(t.name[:1000]))}
    if stated is None or not found:
        return
    missing = stated - len(found & set(range(stated))) if stated <= 10**6 else stated
    beyond = sorted(number for number in found if number >= stated)
    if missing:
        yield finding("WG208", f"{missing} of the {stated} layers of config.json have no tensors")
    if beyond:
        yield finding(
            "WG208", f"layer {beyond[0]} has tensors, but config.json says {stated} layers"
        )
