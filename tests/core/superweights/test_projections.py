"""Output projections are recognised under the names that frameworks write."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from weightguard.superweights.projections import Projection, find_projections, layer_of
from weightguard.tensor import DTYPES, TensorView

H, U, E = 96, 160, 3


class Nothing:
    def read_into(self, offset: int, buffer: memoryview) -> None:
        raise AssertionError("recognising reads no bytes")


def views(shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> list[TensorView]:
    return [TensorView(n, DTYPES[dtype], s, "f", 0, Nothing()) for n, s in shapes.items()]


def only(shapes: Mapping[str, tuple[int, ...]]) -> Projection:
    (projection,) = find_projections(views(shapes))
    return projection


GATED = {
    "model.layers.7.mlp.down_proj.weight": ("gate_proj.weight", "up_proj.weight"),
    "model.layers.7.mlp.experts.2.down_proj.weight": ("gate_proj.weight", "up_proj.weight"),
    "model.layers.7.mlp.shared_expert.down_proj.weight": ("gate_proj.weight", "up_proj.weight"),
    "model.layers.7.block_sparse_moe.experts.2.w2.weight": ("w1.weight", "w3.weight"),
    "layers.7.feed_forward.w2.weight": ("w1.weight", "w3.weight"),
    "blk.7.ffn_down.weight": ("ffn_gate.weight", "ffn_up.weight"),
    "blk.7.ffn_down_shexp.weight": ("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
}
PLAIN = {
    "transformer.h.7.mlp.dense_4h_to_h.weight": "dense_h_to_4h.weight",
    "gpt_neox.layers.7.mlp.dense_4h_to_h.weight": "dense_h_to_4h.weight",
    "model.decoder.layers.7.fc2.weight": "fc1.weight",
    "model.layers.7.mlp.fc2.weight": "fc1.weight",
    "transformer.h.7.mlp.fc_out.weight": "fc_in.weight",
    "model.layers.7.mlp.c_proj.weight": "c_fc.weight",
}


def sibling(name: str, other: str) -> str:
    inner = next(n for n in ("mlp.", "experts.2.", "shared_expert.", "feed_forward.", "blk.7.",
                             "layers.7.") if n in name)  # fmt: skip
    at = name.rindex(inner if "experts.2." not in name else "experts.2.")
    cut = name[: at + len(inner if "experts.2." not in name else "experts.2.")]
    return ("model.layers.7.mlp.shared_expert." if "shared_expert." in name else cut) + other


@pytest.mark.parametrize("name", GATED)
def test_gated_projections_and_their_producers(name: str) -> None:
    gate, up = (sibling(name, other) for other in GATED[name])
    found = only({name: (H, U), gate: (U, H), up: (U, H)})
    assert (found.tensor.name, found.layer, found.outputs, found.units) == (name, 7, H, U)
    assert found.gate is not None
    assert found.up is not None
    assert (found.gate.tensor.name, found.up.tensor.name) == (gate, up)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_projections_have_no_gate(name: str) -> None:
    up = sibling(name, PLAIN[name])
    found = only({name: (H, U), up: (U, H)})
    assert found.gate is None
    assert found.up is not None
    assert found.up.tensor.name == up


def test_gpt2_stores_its_projection_transposed() -> None:
    found = only({"h.3.mlp.c_proj.weight": (U, H), "h.3.mlp.c_fc.weight": (H, U)})
    assert found.transposed
    assert (found.outputs, found.units) == (H, U)


def test_an_attention_projection_of_the_same_name_is_none() -> None:
    assert find_projections(views({"transformer.h.3.attn.c_proj.weight": (H, H)})) == ()


def test_a_fused_producer_gives_the_gate_first() -> None:
    found = only(
        {
            "model.layers.1.mlp.down_proj.weight": (H, U),
            "model.layers.1.mlp.gate_up_proj.weight": (2 * U, H),
            "model.layers.1.post_attention_layernorm.weight": (H,),
        }
    )
    assert found.gate is not None
    assert found.up is not None
    assert (found.gate.first_row, found.up.first_row) == (0, U)
    assert found.norm is not None


@pytest.mark.parametrize(
    ("down", "fused", "expert_rows"),
    [
        ("model.layers.1.mlp.experts.down_proj", "model.layers.1.mlp.experts.gate_up_proj", 2 * U),
        ("blk.1.ffn_down_exps.weight", None, U),
    ],
)
def test_stacked_experts(down: str, fused: str | None, expert_rows: int) -> None:
    shapes: dict[str, tuple[int, ...]] = {down: (E, H, U)}
    if fused is None:
        shapes |= {"blk.1.ffn_up_exps.weight": (E, U, H), "blk.1.ffn_gate_exps.weight": (E, U, H)}
    else:
        shapes[fused] = (E, 2 * U, H)
    found = only(shapes)
    assert found.up is not None
    assert found.up.expert_rows == expert_rows


def test_producers_of_other_shapes_are_not_taken() -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    found = only({name: (H, U), "model.layers.1.mlp.up_proj.weight": (U, H + 1)})
    assert found.up is None


@pytest.mark.parametrize("dtype", ["I8", "U8", "IQ4_XS"])
def test_what_holds_no_numbers_is_no_projection(dtype: str) -> None:
    shapes = {"model.layers.1.mlp.down_proj.weight": (256, 256)}
    assert find_projections(views(shapes, dtype)) == ()


def test_names_without_end_are_passed_over() -> None:
    assert find_projections(views({"layers.1." + "x." * 10**6 + "down_proj.weight": (H, U)})) == ()
    assert layer_of("model.norm.weight") is None
    assert layer_of("model.layers.12.mlp.down_proj.weight") == 12
