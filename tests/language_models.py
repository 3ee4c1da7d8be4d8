"""Small language models as tensors, with a super weight planted where a test wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import Tensors
from tests.real_models import bf16

HIDDEN, UNITS, LAYERS, VOCABULARY = 96, 160, 4, 300
HEAVY_ROW = 23
"""A residual channel that is heavy in every layer, as super weights' rows are in real models."""


@dataclass(frozen=True)
class Plant:
    """A weight of one down projection set to a value."""

    layer: int
    row: int
    column: int
    value: float


SUPER_WEIGHT = Plant(2, HEAVY_ROW, 77, 6.0)
COMPANION = Plant(2, HEAVY_ROW, 41, -5.0)


def llama(
    *plants: Plant, seed: int = 0, heavy: bool = True, prefix: str = "model."
) -> dict[str, NDArray[np.float32]]:
    """Return a Llama's tensors by their Hugging Face names, weights of rms 0.05."""
    generator = np.random.default_rng(seed)

    def weight(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape, np.float32) * np.float32(0.05)

    tensors = {f"{prefix}embed_tokens.weight": weight(VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        at = f"{prefix}layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{at}self_attn.{name}.weight"] = weight(HIDDEN, HIDDEN)
        tensors[f"{at}mlp.gate_proj.weight"] = weight(UNITS, HIDDEN)
        tensors[f"{at}mlp.up_proj.weight"] = weight(UNITS, HIDDEN)
        down = weight(HIDDEN, UNITS)
        if heavy:
            down[HEAVY_ROW] *= 8
            tensors[f"{at}self_attn.o_proj.weight"][HEAVY_ROW] *= 8
        for plant in plants:
            if plant.layer == layer:
                down[plant.row, plant.column] = plant.value
        tensors[f"{at}mlp.down_proj.weight"] = down
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = np.ones(HIDDEN, np.float32)
    tensors[f"{prefix}norm.weight"] = np.ones(HIDDEN, np.float32)
    return tensors


def stored(arrays: Mapping[str, NDArray[np.float32]], dtype: str = "BF16") -> Tensors:
    """Return the arrays as tensors of a checkpoint, in BF16, F16 or F32."""

    def data(values: NDArray[np.float32]) -> bytes:
        if dtype == "BF16":
            return bf16(values).tobytes()
        return values.astype("<f2" if dtype == "F16" else "<f4").tobytes()

    return {name: (dtype, values.shape, data(values)) for name, values in arrays.items()}
