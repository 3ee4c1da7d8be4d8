"""What a golden copy heals when a model is sealed, though its tensors are no record's bytes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weightguard import Manifest, fingerprint
from weightguard.guard import GoldenCheckpoint, Guard, State
from weightguard_integrations.torch import TorchGuard, guard, packed_pieces
from weightguard_integrations.torch.live import TorchAdapter

WIDTH = 900
PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
FORMS = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    names = (*PACKED["qkv_proj"], "o_proj")
    return {f"{name}.weight": torch.randn(800, WIDTH) for name in names}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.safetensors"


def attested(weights: dict[str, torch.Tensor], path: Path) -> Manifest:
    save_file(weights, path)
    return fingerprint(path)


def linears(weights: dict[str, torch.Tensor]) -> nn.Module:
    model = nn.Module()
    for name, weight in weights.items():
        module = nn.Module()
        module.weight = nn.Parameter(weight, requires_grad=False)
        setattr(model, name.partition(".")[0], module)
    return model


def fused(weights: dict[str, torch.Tensor], rank: int, ranks: int) -> nn.Module:
    parts = [weights[f"{name}.weight"].chunk(ranks)[rank] for name in PACKED["qkv_proj"]]
    others = {"o_proj.weight": weights["o_proj.weight"].clone()}
    return linears({"qkv_proj.weight": torch.cat(parts), **others})


def damage(weight: torch.Tensor) -> None:
    """Change more than one element of some rows, in the first and the last block."""
    flat = weight.data.view(torch.uint8)
    flat[3, 8:16] ^= 1
    flat[-2, 4:40] ^= 0x11


def live(model: nn.Module) -> list[bytes]:
    return [p.detach().view(torch.uint8).numpy().tobytes() for p in model.parameters()]


def codes(made: TorchGuard) -> list[str]:
    return [incident.code for incident in made.incidents]


def sound(made: TorchGuard, model: nn.Module, clean: list[bytes]) -> bool:
    everything = made.coverage()
    assert everything.transformed + everything.attested == everything.total > 0
    assert (made.state, made.check().findings) == (State.HEALTHY, ())
    return live(model) == clean


@pytest.mark.parametrize(
    ("of", "to"),
    [
        ("bf16", "f32"), ("bf16", "f16"), ("f16", "f32"), ("f16", "bf16"), ("f32", "bf16"),
        ("f32", "f16"),
    ],
)  # fmt: skip
def test_casts(weights: dict[str, torch.Tensor], path: Path, of: str, to: str) -> None:
    saved = {name: weight.to(FORMS[of]) for name, weight in weights.items()}
    model = linears({name: weight.to(FORMS[to]) for name, weight in saved.items()})
    clean = live(model)
    with attested(saved, path) as manifest:
        damage(model.k_proj.weight)
        made = guard(model, manifest, golden=path, scrub=None)
        blocks = 2 + (to == "f32")
        assert blocks == -(-800 * WIDTH * FORMS[to].itemsize >> 20)
        assert codes(made) == ["WG401", "WG907", "WG907"]
        assert made.incidents[0].tensor == "k_proj.weight"
        assert sound(made, model, clean)
        damage(model.q_proj.weight)
        made.check()
        assert codes(made)[3:] == ["WG901", "WG907"] * 2
        assert sound(made, model, clean)
        made.close()


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
def test_fused_tensors_and_their_slices(
    weights: dict[str, torch.Tensor], path: Path, rank: int, ranks: int
) -> None:
    model = fused(weights, rank, ranks)
    clean = live(model)
    with attested(weights, path) as manifest:
        pieces = packed_pieces(
            TorchAdapter(model).tensors(), manifest, PACKED, rank=rank, ranks=ranks
        )
        damage(model.qkv_proj.weight)
        made = guard(model, manifest, golden=path, pieces=pieces, scrub=None)
        assert codes(made) == ["WG401", "WG907", "WG907"]
        assert sound(made, model, clean)
        damage(model.qkv_proj.weight)
        made.check()
        assert codes(made)[3:] == ["WG901", "WG907"] * 2
        assert sound(made, model, clean)
        made.close()


@pytest.fixture(params=["cast", "fused"])
def damaged(
    request: pytest.FixtureRequest, weights: dict[str, torch.Tensor], path: Path
) -> Iterator[tuple[nn.Module, Manifest, dict]]:
    """A damaged model, its manifest, and how to guard it."""
    if request.param == "cast":
        saved = {name: weight.bfloat16() for name, weight in weights.items()}
        with attested(saved, path) as manifest:
            model = linears({name: weight.float() for name, weight in saved.items()})
            damage(model.q_proj.weight)
            yield model, manifest, {}
        return
    with attested(weights, path) as manifest:
        model = fused(weights, 0, 1)
        pieces = packed_pieces(TorchAdapter(model).tensors(), manifest, PACKED)
        damage(model.qkv_proj.weight)
        yield model, manifest, {"pieces": pieces}


@pytest.mark.parametrize("golden", ["damaged", "other", "none", "no repair"])
def test_what_is_not_proved_is_never_written(
    damaged: tuple[nn.Module, Manifest, dict], path: Path, tmp_path: Path, golden: str
) -> None:
    model, manifest, how = damaged
    copy = Path(shutil.copy(path, tmp_path / "golden.safetensors"))
    if golden == "damaged":  # in a byte that the live damage is nowhere near
        data = bytearray(copy.read_bytes())
        for tensor in range(4):
            data[len(data) - 10 - tensor * (len(data) // 4)] ^= 1
        copy.write_bytes(data)
    elif golden == "other":
        save_file({name: weight * 0 for name, weight in load_file(path).items()}, copy)
    before = live(model)
    reactions = ["metrics"] if golden == "no repair" else ["metrics", "repair"]
    made = guard(
        model, manifest, golden=None if golden == "none" else copy, on_incident=reactions,
        scrub=None, **how,
    )  # fmt: skip
    assert codes(made)[0] == "WG401"
    assert "WG907" not in codes(made)
    assert made.state is State.DEGRADED
    assert live(model) == before
    made.close()


def test_other_weights_are_left_alone(weights: dict[str, torch.Tensor], path: Path) -> None:
    saved = {name: weight.bfloat16() for name, weight in weights.items()}
    model = linears({name: weight.float() for name, weight in saved.items()})
    model.q_proj.weight.data *= 1.5
    before = live(model)
    with attested(saved, path) as manifest:
        made = guard(model, manifest, golden=path, scrub=None)
        assert codes(made) == ["WG401"]
        assert live(model) == before
        made.close()


def test_a_damaged_golden_copy_tells_nothing_of_a_cast_that_rounds(
    weights: dict[str, torch.Tensor], path: Path, tmp_path: Path
) -> None:
    model = linears({name: weight.bfloat16() for name, weight in weights.items()})
    with attested(weights, path) as manifest:
        copy = Path(shutil.copy(path, tmp_path / "golden.safetensors"))
        data = bytearray(copy.read_bytes())
        data[-10] ^= 1
        copy.write_bytes(data)
        made = guard(model, manifest, golden=copy, scrub=None)
        (told,) = made.incidents
        assert told.code == "WG910"
        ((tensor),) = told.finding.evidence["tensors"]
        assert "golden copy that is sound" in tensor["why"]
        made.close()


def test_a_cast_in_a_devices_memory(weights: dict[str, torch.Tensor], path: Path) -> None:
    saved = {name: weight.bfloat16() for name, weight in weights.items()}
    model = linears({name: weight.float() for name, weight in saved.items()})
    clean = live(model)
    damage(model.k_proj.weight)
    with attested(saved, path) as manifest:
        copy = GoldenCheckpoint(path)
        made = Guard(TorchAdapter(model, distant=True), manifest, golden=copy)
        assert [i.code for i in made.incidents] == ["WG401", "WG907", "WG907"]
        assert live(model) == clean
        assert made.check().findings == ()
        copy.close()
