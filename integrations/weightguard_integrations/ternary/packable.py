"""Which matrices a model multiplies with: no tables, and none that is stored transposed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from weightguard import TensorView, WeightguardError

_TABLE = re.compile(r".*embe?d.*|.*_emb|wte|wpe|shared|relative_attention_bias")
_MULTIPLIED = re.compile(r".*proj.*|.*dense.*|embed_out|unembed")
"""Of the names above: linear layers that lead from or to embeddings."""
_HEAD = re.compile(r".*head|decoder|out|out_proj|output.*|proj_out|embed_out|unembed|lm_loss")
"""Linear layers with a row for each token, as models name them."""
_BLOCK = re.compile(r"\.\d+\.")
"""In the name of what a model has once a block; token tables are outside of the blocks."""

_TRANSPOSED = re.compile(r"c_attn|c_fc|c_proj|q_attn")
_TRANSPOSING = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
"""Model types whose blocks are of ``Conv1D``, which keeps [inputs, outputs]."""


def require_packable(tensor: TensorView, config: Mapping[str, Any]) -> None:
    """Raise WeightguardError for a matrix that a packed one [outputs, inputs] cannot replace.

    ``config`` is the parsed config.json, empty without one: tables are told by their names, and
    by as many rows as it has tokens.
    """
    tokens = tensor.shape[0] in set(_vocabularies(config))
    tied = config.get("tie_word_embeddings") is True
    for name in (tensor.name, *tensor.aliases):
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        head = _HEAD.fullmatch(leaf) is not None
        reason = None
        if _TABLE.fullmatch(leaf) and not _MULTIPLIED.fullmatch(leaf):
            reason = "is a table: it is looked up, not multiplied with"
        elif tokens and not head and not _BLOCK.search(name):
            reason = (
                f"has a row for each of the {tensor.shape[0]} tokens of config.json and is no "
                "known head: it is looked up, not multiplied with"
            )
        elif tokens and head and tied:
            reason = "is tied to the embedding table by config.json, which is looked up, too"
        elif _TRANSPOSED.fullmatch(leaf) and config.get("model_type") in _TRANSPOSING:
            reason = f"is stored as [inputs, outputs] in a {config['model_type']} model"
        if reason is not None:
            raise WeightguardError(f"{name!r:.200} {reason}. Name layers without it (--layers).")


def _vocabularies(config: Mapping[str, Any]) -> Iterator[int]:
    """Yield the numbers of tokens that a configuration or its parts state."""
    for part in (config, *(value for value in config.values() if isinstance(value, Mapping))):
        size = part.get("vocab_size")
        if isinstance(size, int):
            yield size
