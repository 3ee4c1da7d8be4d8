"""Packed weights under a guard: covered, scrubbed, repaired, and heard when a product alarms."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conformance.suite import AdapterConformance, codes, one_pass, quiet
from tests.integrations.ternary.test_faults import weight_byte
from tests.integrations.torch.test_live_conformance import TorchSubject
from weightguard import Manifest, WeightguardError, fingerprint
from weightguard.errors import IntegrityError
from weightguard.guard import Guard, Incident, MemoryMetrics, State
from weightguard.guard.metrics import MISMATCHES
from weightguard.salient import Salience, SuperWeight
from weightguard_integrations.ternary import (
    PackedInt8,
    PackedMatrix,
    PackedTernary,
    TernaryAdapter,
)
from weightguard_integrations.ternary.layers import TernaryLinear, load_ternary
from weightguard_integrations.ternary.ternarize import ternarize
from weightguard_integrations.torch import guard

SHAPES = ((1024, 400), (500, 1024))


def packed_pair() -> tuple[PackedMatrix, PackedMatrix]:
    """A small ternary matrix, and an int8 one of a megabyte and a half after it."""
    rng = np.random.default_rng(5)
    up = PackedTernary.from_int8(rng.integers(-1, 2, SHAPES[0], np.int8), 0.02, name="up")
    weight = rng.integers(-128, 128, (1500, SHAPES[0][0]), np.int8)
    down = PackedInt8.from_int8(weight, rng.random(1500, np.float32) + 0.1, name="down")
    return up, down


class MatricesSubject:
    """Two packed matrices, one after the other; unchecked, so that damage shows in outputs."""

    def __init__(self) -> None:
        self.matrices = dict(zip(("up", "down"), packed_pair(), strict=True))
        self.adapter = TernaryAdapter(self.matrices)
        self.x = np.random.default_rng(6).standard_normal((1, SHAPES[0][1]), np.float32)

    def run(self) -> bytes:
        hidden = self.matrices["up"].linear(self.x, verify="off")
        return bytes(self.matrices["down"].linear(hidden, verify="off").tobytes())

    def poke(self, name: str, start: int, data: bytes) -> None:
        matrix = self.matrices[name.partition(".")[0]]
        array = matrix.packed if name.endswith("packed") else matrix.scales
        ctypes.memmove(array.ctypes.data + start, data, len(data))

    def rewrite(self, name: str, data: bytes) -> None:
        """Put another matrix in the place of one, as who loads other weights does."""
        place, _, part = name.partition(".")
        old = self.matrices[place]
        packed, scales = old.packed.copy(), old.scales
        if part == "packed":
            packed[:] = np.frombuffer(data, np.uint8)
        else:
            scales = np.frombuffer(data, np.float32)
        self.matrices[place] = type(old)(packed, scales, old.geometry, name=place)


class TestPackedMatrices(AdapterConformance):
    @pytest.fixture
    def subject(self) -> MatricesSubject:
        return MatricesSubject()


def layers(**options: object) -> nn.Module:
    made = [TernaryLinear(packed, **options) for packed in packed_pair()]  # type: ignore[arg-type]
    return nn.Sequential(made[0], nn.ReLU(), made[1]).eval()


class TestTernaryLayers(AdapterConformance):
    @pytest.fixture
    def subject(self) -> TorchSubject:
        torch.manual_seed(2)
        return TorchSubject(layers(verify="off"), torch.randn(2, SHAPES[0][1]))


def flip(model: nn.Module, row: int, column: int) -> None:
    """Flip a bit of a weight of the first layer, check rows counting on."""
    matrix = model[0].packed  # type: ignore[index]
    offset = weight_byte(matrix, row, column)
    matrix.packed[offset] ^= 1 << 2 * matrix.geometry.place(offset).columns.index(column)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, SHAPES[0][1])


def test_all_packed_bytes_and_scales_are_covered() -> None:
    model = layers()
    with guard(model, scrub=None) as g:
        assert g.coverage().ratio == 1
        assert g.coverage().covered == sum(m.packed.nbytes for m in (model[0], model[2]))  # type: ignore[index]


@pytest.mark.parametrize("on_fault", ["raise", "mark", "recompute", "repair"])
def test_a_guard_hears_a_product_and_heals_its_weights(on_fault: str, x: torch.Tensor) -> None:
    model, metrics = layers(on_fault=on_fault), MemoryMetrics()
    told: list[Incident] = []
    expected = model(x)
    on_incident = (told.append, "metrics", "repair")
    with guard(
        model, scrub=None, step_budget=0, on_incident=on_incident, metrics=metrics
    ) as g:  # fmt: skip
        flip(model, 37, 21)
        if on_fault in ("raise", "recompute"):
            with pytest.raises(IntegrityError):
                model(x)
        elif on_fault == "mark":
            assert model(x).isnan().all()
        else:
            assert torch.equal(model(x), expected)
        healed = [] if on_fault == "repair" else ["WG901", "WG907"]
        assert codes(g) == ["WG920", "WG921", *healed]
        assert [incident.code for incident in told if incident.code != "WG910"] == codes(g)
        product, stored = (i for i in g.incidents if i.code in ("WG920", "WG921"))
        assert (product.tensor, product.finding.location.row) == ("up", 37)
        assert product.finding.evidence["tile"] == 21 // 16
        assert stored.cause == product.number
        assert metrics.value(MISMATCHES, "WG920") == metrics.value(MISMATCHES, "WG921") == 1
        assert g.state is State.HEALTHY
        assert torch.equal(model(x), expected), "the layer is whole again"
        assert len(codes(g)) == 2 + len(healed)


def test_flipped_scales_are_heard_and_healed(x: torch.Tensor) -> None:
    model = layers()
    expected = model(x)
    with guard(model, scrub=None, step_budget=0) as g:
        model[2].packed.scales.view(np.uint32)[7] ^= 1 << 30  # type: ignore[index]
        with pytest.raises(IntegrityError):
            model(x)
        assert codes(g) == ["WG920", "WG921", "WG901", "WG907"]
        assert g.incidents[-2].tensor == "2.weight.scale"
        assert torch.equal(model(x), expected)


def test_a_passing_fault_is_heard_and_opens_nothing(x: torch.Tensor) -> None:
    model = layers()
    with guard(model, scrub=None) as g:
        matrix = model[0].packed  # type: ignore[index]
        matrix.linear(x.numpy(), on_fault="recompute", drills=((1, 2, 50, 4),))
        assert codes(g) == ["WG920"]
        assert g.state is State.HEALTHY


@pytest.mark.parametrize("site", ["weights", "check rows"])
def test_what_is_silent_gives_right_outputs_and_is_scrubbed(site: str) -> None:
    """A flip that meets only zeros changes nothing that is computed, until the scrubber ends it."""
    model = layers()
    x = torch.zeros(2, SHAPES[0][1])
    x[:, ::2] = torch.randn(2, SHAPES[0][1] // 2)
    expected = model(x)
    with guard(model, scrub=None, step_budget=0) as g:
        clean = model[0].packed.packed.copy()  # type: ignore[index]
        flip(model, 37 if site == "weights" else SHAPES[0][0] + 2, 21)
        assert torch.equal(model(x), expected)
        assert codes(g) == []
        one_pass(g)
        assert codes(g) == ["WG901", "WG907"]
        assert (model[0].packed.packed == clean).all()  # type: ignore[index]


def test_layers_put_in_by_an_update_are_heard(x: torch.Tensor) -> None:
    model = layers()
    with guard(model, scrub=None, step_budget=0) as g:
        former = model[0].packed  # type: ignore[index]
        with g.update():
            model[0] = TernaryLinear(packed_pair()[0])  # type: ignore[index]
        flip(model, 5, 6)
        with pytest.raises(IntegrityError):
            model(x)
        assert codes(g) == ["WG903", "WG920", "WG921", "WG901", "WG907"]
        former.packed[0] ^= 1
        former.linear(x.numpy(), on_fault="mark")
        assert len(codes(g)) == 5, "what left the model is not heard any more"
    flip(model, 5, 6)
    with pytest.raises(IntegrityError):
        model(x)
    assert len(codes(g)) == 5, "and nothing once the guard is closed"


def test_a_guard_of_matrices_hears_them() -> None:
    up, down = packed_pair()
    with Guard(TernaryAdapter({"a": up, "b": down, "again": up}), settings=quiet()) as g:
        assert g.coverage().covered == up.nbytes + down.nbytes
        up.packed[12] ^= 1
        up.linear(np.ones((1, up.shape[1]), np.float32), on_fault="mark")
        assert codes(g)[:2] == ["WG920", "WG921"]
        assert codes(g)[-2:] == ["WG901", "WG907"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A small Llama, ternarised with two weights of one layer kept."""
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=90, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        attention_bias=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "source")
    ternarize(tmp_path / "source", tmp_path / "out")
    return tmp_path / "out"


def test_a_ternarised_model_is_attested(folder: Path) -> None:
    model = load_ternary(folder)
    manifest = folder / "model.weightguard.json"
    tokens = torch.arange(9)[None]
    with torch.no_grad(), guard(model, manifest, scrub=None, step_budget=0, golden=folder) as g:
        assert codes(g) == []
        entries = g.baseline.tensors
        packed = [name for name in entries if name.endswith((".weight.packed", ".weight.scale"))]
        assert len(packed) == 2 * 14
        assert {entries[name].attestation for name in packed} == {"attested"}
        assert all(entries[name].record == name for name in packed if name.endswith("packed"))
        bias = entries["model.layers.1.self_attn.k_proj.bias"]
        assert (bias.attestation, bias.how) == (
            "transformed",
            "cast from BF16; every byte recomputed",
        )
        expected = model(tokens).logits
        damaged = model.model.layers[1].mlp.up_proj
        damaged.weight.packed.numpy()[1, 100:400] ^= 0x55
        with pytest.raises(IntegrityError, match=r"layers\.1\.mlp\.up_proj"):
            model(tokens)
        assert g.incidents[-1].finding.evidence["source"] == "golden copy"
        assert torch.equal(model(tokens).logits, expected)


def test_the_bias_of_a_packed_layer_is_the_folders(folder: Path) -> None:
    source = LlamaForCausalLM.from_pretrained(folder.parent / "source", dtype=torch.float32)
    name = "model.layers.1.self_attn.k_proj"
    expected, loaded = source.get_submodule(name).bias, load_ternary(folder).get_submodule(name)
    assert torch.equal(loaded.bias, expected)
    x = torch.randn(2, 64)
    assert torch.equal(loaded(x), loaded.packed.linear(x) + expected)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mlp_bias": True}))
    with pytest.raises(WeightguardError, match=r"does not hold the 64 values of .*down_proj\.bias"):
        load_ternary(folder)


def test_a_packed_layer_of_other_weights_is_a_finding(folder: Path) -> None:
    model = load_ternary(folder)
    name = "model.layers.0.mlp.up_proj"
    model.get_submodule(name).packed.packed[3] ^= 1
    with Manifest.read(folder / "model.weightguard.json") as manifest:
        g = guard(model, manifest, scrub=None, on_incident=["log"])
    assert codes(g) == ["WG401"]
    assert g.incidents[0].tensor == f"{name}.weight.packed"
    g.close()


def test_kept_weights_are_attested_too(folder: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    weight = SuperWeight(name, (3, 7), "0x0", 0.0, "confirmed", {}, loss_change=1.0)
    with fingerprint(tmp_path / "source") as made:
        document = msgspec.structs.replace(made.document, salience=Salience((weight,)))
        ternarize(
            tmp_path / "source", tmp_path / "kept", manifest=replace(made, document=document),
            keep_super_weights=True,
        )  # fmt: skip
    model = load_ternary(tmp_path / "kept")
    layer = model.get_submodule(name.removesuffix(".weight"))
    assert layer.packed.unpack()[3, 7] == 0
    source = LlamaForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    exact = source.model.layers[1].mlp.down_proj.weight[3, 7]
    assert layer.weight.kept_value.tolist() == [exact.item()]
    with guard(model, tmp_path / "kept" / "model.weightguard.json", scrub=None) as g:
        for part in ("kept_index", "kept_value"):
            assert g.baseline.tensors[f"{name}.{part}"].attestation == "attested"
