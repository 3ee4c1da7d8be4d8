"""Checked layers in models: transformers' BitNet, and a real model with ternary layers."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitNetConfig, BitNetForCausalLM
from transformers.integrations.bitnet import pack_weights, replace_with_bitnet_linear
from transformers.utils.quantization_config import BitNetQuantConfig

from tests.integrations.torch.real_folder import smollm2_folder
from weightguard.errors import IntegrityError
from weightguard_integrations.ternary import PackedInt8, PackedTernary
from weightguard_integrations.ternary.layers import TernaryLinear, replace_bitlinear

TEXT = (
    "The quick brown fox jumps over the lazy dog. Water boils at one hundred degrees Celsius at "
    "sea level, and freezes at zero. The capital of France is Paris, which lies on the river Seine."
)
KEPT = ((507, 1229), (507, 1487))
"""The two weights of layer 11's down_proj that SmolLM2 hangs on (docs/evidence)."""


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Transformers' layers ask to be compiled, which takes longer than the tests."""
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        yield


def tiny_bitnet(kind: str, mode: str) -> BitNetForCausalLM:
    torch.manual_seed(3)
    config = BitNetConfig(
        vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return with_bitnet_layers(BitNetForCausalLM(config).eval(), kind, mode)


def with_bitnet_layers(model: Any, kind: str, mode: str) -> Any:
    """The model with transformers' own ternary layers in place of its projections."""
    masters = {n: m.weight.detach().clone() for n, m in model.named_modules() if linear(n, m)}
    quantisation = BitNetQuantConfig(linear_class=kind, quantization_mode=mode)
    replace_with_bitnet_linear(model, ["lm_head"], quantisation)
    for name, weight in masters.items():
        module = model.get_submodule(name)
        module.to_empty(device="cpu")
        mean = weight.abs().mean()
        codes = (weight / mean).round().clamp(-1, 1)
        if mode == "online":
            module.weight.data.copy_(weight)
        elif kind == "autobitlinear":
            module.weight.data.copy_(codes)
            module.weight_scale.fill_(mean)
        else:
            module.weight.copy_(pack_weights(codes.clone()))
            module.weight_scale.fill_(1 / mean)
    return model.eval()


def linear(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and name != "lm_head"


MODELS = [("bitlinear", "offline"), ("autobitlinear", "offline"), ("autobitlinear", "online")]


@pytest.mark.parametrize(("kind", "mode"), MODELS)
def test_logits_and_generation_agree_with_transformers(kind: str, mode: str) -> None:
    model = tiny_bitnet(kind, mode)
    tokens = torch.randint(2, 99, (3, 12))
    expected = model(tokens).logits
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    written = model.generate(tokens, **options)
    replaced = replace_bitlinear(model)
    assert len(replaced) == 14
    assert all(isinstance(model.get_submodule(name), TernaryLinear) for name in replaced)
    # a rounding of an activation to another of 255 steps is the greatest difference
    torch.testing.assert_close(model(tokens).logits, expected, rtol=0, atol=0.02)
    assert (model(tokens).logits - expected).abs().median() < 1e-5
    assert torch.equal(model.generate(tokens, **options), written)


def test_the_head_as_int8_stays_close() -> None:
    model = tiny_bitnet("bitlinear", "offline")
    tokens = torch.randint(2, 99, (2, 9))
    expected = model(tokens).logits
    assert "lm_head" in replace_bitlinear(model, int8=["lm_head"])
    assert isinstance(model.lm_head.packed, PackedInt8)
    assert (model(tokens).logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_names_that_are_no_linear_layer_are_refused() -> None:
    model = tiny_bitnet("bitlinear", "offline")
    with pytest.raises(ValueError, match="no layer 'head'"):
        replace_bitlinear(model, int8=["head"])
    with pytest.raises(ValueError, match="not a linear layer"):
        replace_bitlinear(model, int8=["model.embed_tokens"])


def test_weights_that_are_not_ternary_are_refused() -> None:
    model = tiny_bitnet("autobitlinear", "offline")
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] = 0.5
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj"):
        replace_bitlinear(model)
    assert dict(model.named_modules()) == before, "all or nothing"


def test_damage_in_a_live_layer_stops_generation() -> None:
    model = tiny_bitnet("bitlinear", "offline")
    replace_bitlinear(model)
    layer = model.model.layers[1].mlp.up_proj
    layer.weight.packed[0, :64] ^= 1  # the buffer is the kernel's own memory
    with pytest.raises(IntegrityError, match=r"layers\.1\.mlp\.up_proj"):
        model.generate(torch.randint(2, 99, (1, 8)), max_new_tokens=2)


def test_buffers_are_the_kernels_memory() -> None:
    layer = TernaryLinear(PackedTernary.from_int8(np.ones((4, 8), np.int8), 1.0))
    assert {name for name, _ in layer.named_buffers()} == {"weight.packed", "weight.scale"}
    for move in (layer.half, layer.share_memory, lambda: layer.to("meta")):
        move()  # the kernel still reads where it did
        assert layer.weight.packed.data_ptr() == layer.packed.packed.ctypes.data
        assert layer.weight.scale.data_ptr() == layer.packed.scales.ctypes.data


def small_layer() -> TernaryLinear:
    matrix = PackedTernary.from_int8(np.eye(4, 8, dtype=np.int8), 1.0, name="up")
    return TernaryLinear(matrix, kept=[(0, 5, 2.0)])


def test_what_would_lose_packed_weights_says_so() -> None:
    layer = small_layer()
    with pytest.raises(TypeError, match="up is packed: its weights are not saved"):
        layer.state_dict()
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(layer)
    with pytest.raises(TypeError, match="traced"):
        torch.jit.trace(layer, torch.ones(1, 8))


def test_a_deep_copy_is_of_its_own_memory() -> None:
    layer, x = small_layer(), torch.arange(8.0)[None]
    expected = layer(x)
    copied = copy.deepcopy(layer)
    layer.weight.packed[0, 0] ^= 1
    assert torch.equal(copied(x), expected)
    assert copied.weight.packed.data_ptr() == copied.packed.packed.ctypes.data
    with pytest.raises(ValueError, match="damaged"):
        copy.deepcopy(layer)


def test_layers_of_wrong_parts_are_refused() -> None:
    matrix = PackedTernary.from_int8(np.ones((4, 8), np.int8), 1.0)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"packed": np.ones((4, 8))}, TypeError, "not a packed matrix"),
        ({"verify": "maybe"}, ValueError, "verify"),
        ({"on_fault": "pray"}, ValueError, "on_fault"),
    ]
    for options, error, words in wrong:
        with pytest.raises(error, match=words):
            TernaryLinear(**{"packed": matrix, **options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_weights_and_bias(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    source = nn.Linear(40, 24)
    source.weight[3, 7] = 50.0
    plain = TernaryLinear.from_linear(source)
    kept = TernaryLinear.from_linear(source, keep=[(3, 7)])
    x = torch.randn(2, 5, 40).to(dtype)
    rest = kept(x).float() - plain(x).float()
    mean = source.weight.abs().mean()
    tolerance = 1e-4 if dtype == torch.float32 else 0.5
    torch.testing.assert_close(
        rest[..., 3], x[..., 7].float() * (50 - mean), atol=tolerance, rtol=0.01
    )
    assert (rest[..., [n for n in range(24) if n != 3]] == 0).all()
    with pytest.raises(ValueError, match="no weight"):
        TernaryLinear.from_linear(source, keep=[(24, 0)])


@pytest.mark.real
@pytest.mark.proof
def test_logits_of_a_real_model_agree_with_transformers(claim: Callable[[str], None]) -> None:
    """Two layers of SmolLM2, each projection ternary: theirs in floats, ours in integers."""
    folder = smollm2_folder()
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, num_hidden_layers=2)
    model = with_bitnet_layers(loaded, "autobitlinear", "offline")
    tokens = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    expected = model(tokens).logits
    assert len(replace_bitlinear(model)) == 14
    logits = model(tokens).logits
    difference = (logits - expected).abs().max().item() / expected.abs().max().item()
    same = (logits.argmax(-1) == expected.argmax(-1)).float().mean().item()
    claim(
        f"SmolLM2's first two layers, ternary: logits differ by at most {difference:.1e} of the "
        f"greatest, argmax equal in {same:.0%} of {tokens.numel()} tokens"
    )
    assert difference < 0.01
    assert same == 1


@pytest.mark.real
@pytest.mark.proof
def test_two_kept_weights_save_a_ternary_layer_of_a_real_model(
    claim: Callable[[str], None],
) -> None:
    folder = smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids

    def perplexity() -> float:
        return math.exp(model(tokens, labels=tokens).loss)

    sound = perplexity()
    mlp = model.model.layers[11].mlp
    source = mlp.down_proj
    found = {}
    for name, keep in (("none", ()), ("both", KEPT)):
        mlp.down_proj = TernaryLinear.from_linear(source, keep=keep)
        found[name] = perplexity()
    claim(
        f"SmolLM2 with a ternary down_proj of layer 11: perplexity {found['none']:.0f}, with two "
        f"weights kept {found['both']:.1f}, unchanged {sound:.1f}"
    )
    assert found["none"] > 1000 * sound
    assert found["both"] < 2 * sound
    mlp.down_proj = source
    for layer in model.model.layers[:3]:  # generation with a cache through checked layers
        layer.mlp.up_proj = TernaryLinear.from_linear(layer.mlp.up_proj)
    batch = tokens[:, :12].repeat(2, 1)
    written = model.generate(batch, max_new_tokens=4, do_sample=False)
    assert written.shape == (2, 16)
    assert torch.equal(written[0], written[1])
