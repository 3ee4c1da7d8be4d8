"""Fused and sliced tensors are sealed as pieces of attested ones, or a finding says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from weightguard import Manifest, WeightguardError, fingerprint
from weightguard.guard import LiveTensor, Piece, State
from weightguard_integrations.torch import guard, packed_pieces
from weightguard_integrations.torch.live import TorchAdapter

PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
ROWS = {"q_proj": 700, "k_proj": 350, "v_proj": 350, "gate_proj": 900, "up_proj": 900}
WIDTH = 1000


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {f"{n}.weight": torch.randn(rows, WIDTH).bfloat16() for n, rows in ROWS.items()}


@pytest.fixture
def manifest(weights: dict[str, torch.Tensor], tmp_path: Path) -> Manifest:
    save_file(weights, tmp_path / "m.safetensors")
    return fingerprint(tmp_path / "m.safetensors")


def fused(weights: dict[str, torch.Tensor], rank: int = 0, ranks: int = 1) -> torch.nn.Module:
    model = torch.nn.Module()
    for name, parts in PACKED.items():
        shards = [weights[f"{part}.weight"].chunk(ranks)[rank] for part in parts]
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(torch.cat(shards), requires_grad=False)
        setattr(model, name, module)
    return model


def live(model: torch.nn.Module) -> list[LiveTensor]:
    return list(TorchAdapter(model).tensors())


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2)])
def test_fused_tensors_and_their_row_slices_are_transformed(
    weights: dict[str, torch.Tensor], manifest: Manifest, rank: int, ranks: int
) -> None:
    model = fused(weights, rank, ranks)
    pieces = packed_pieces(live(model), manifest, PACKED, rank=rank, ranks=ranks)
    with guard(model, manifest, pieces=pieces, scrub=None) as watched:
        assert watched.incidents == ()
        coverage = watched.coverage()
        assert coverage.transformed == coverage.total > 0
        how = watched.baseline.tensors["qkv_proj.weight"].how
        assert how.startswith("3 declared pieces")
        assert ("digest of each" in how) == (ranks == 1)


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("bit", [0, 9])
def test_a_flip_is_found_in_the_record_and_row_that_it_is_of(
    weights: dict[str, torch.Tensor], manifest: Manifest, rank: int, ranks: int, bit: int
) -> None:
    model = fused(weights, rank, ranks)
    pieces = packed_pieces(live(model), manifest, PACKED, rank=rank, ranks=ranks)
    row = ROWS["q_proj"] // ranks + 7
    model.qkv_proj.weight.view(torch.int16)[row, 123] ^= 1 << bit
    with guard(model, manifest, pieces=pieces, scrub=None, on_incident=["log"]) as watched:
        (incident,) = (i for i in watched.incidents if i.finding.rule == "WG401")
        assert incident.finding.location.tensor == "qkv_proj.weight"
        (evidence,) = incident.finding.evidence["pieces"]
        expected = rank * ROWS["k_proj"] // ranks + 7
        assert (evidence["record"], evidence["rows"]) == ("k_proj.weight", [expected])
        assert watched.coverage().trusted == model.qkv_proj.weight.nbytes


def test_parts_in_another_order_are_no_match(
    weights: dict[str, torch.Tensor], manifest: Manifest
) -> None:
    model = fused(weights)
    swapped = {**PACKED, "qkv_proj": ("q_proj", "v_proj", "k_proj")}
    pieces = packed_pieces(live(model), manifest, swapped)
    with guard(model, manifest, pieces=pieces, scrub=None, on_incident=["log"]) as watched:
        (incident,) = (i for i in watched.incidents if i.finding.rule == "WG401")
        found = {piece["record"] for piece in incident.finding.evidence["pieces"]}
        assert found == {"k_proj.weight", "v_proj.weight"}


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece("q_proj.weight", 0, 1400000), "declare every piece"),
        (Piece("q_proj.weight", 2, 2002), "whole rows"),
        (Piece("q_proj.weight", 0, 1 << 62), "which has 1400000 in this manifest: give `pieces`"),
        (Piece("q_proj.weight", 4000, 2000), "which has 1400000 in this manifest"),
        (Piece("nothing", 0, 2000), "no attested tensor"),
    ],
)
def test_impossible_pieces_are_refused(
    weights: dict[str, torch.Tensor], manifest: Manifest, piece: Piece, message: str
) -> None:
    with pytest.raises(WeightguardError, match=message):
        guard(fused(weights), manifest, pieces={"qkv_proj.weight": [piece]}, scrub=None)


def test_a_rank_beyond_the_last_is_refused(manifest: Manifest) -> None:
    with pytest.raises(WeightguardError, match="rank 2 is none of 2"):
        packed_pieces([], manifest, PACKED, rank=2, ranks=2)


def renamed(weights: dict[str, torch.Tensor], folder: Path, rows: int | None = None) -> Manifest:
    """Return the manifest of weights fine-tuned a little, under other names or of fewer rows."""
    tensors = {
        (f"other.{name}" if rows is None else name): (weight * 1.5)[:rows].contiguous()
        for name, weight in weights.items()
    }
    save_file(tensors, folder / "new.safetensors")
    return fingerprint(folder / "new.safetensors")


def test_an_update_keeps_the_pieces_or_takes_new_ones(
    weights: dict[str, torch.Tensor], manifest: Manifest, tmp_path: Path
) -> None:
    model = fused(weights)
    pieces = packed_pieces(live(model), manifest, PACKED)
    others = {
        name: [p._replace(record=f"other.{p.record}") for p in pieces[name]] for name in pieces
    }
    tuned = {name: weight * 1.5 for name, weight in weights.items()}
    save_file(tuned, tmp_path / "tuned.safetensors")
    with (
        guard(model, manifest, pieces=pieces, scrub=None) as watched,
        fingerprint(tmp_path / "tuned.safetensors") as same,
        renamed(weights, tmp_path) as new,
    ):
        with watched.update(same):
            model.load_state_dict(fused(tuned).state_dict())
        coverage = watched.coverage()
        assert coverage.transformed == coverage.total > 0
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with (
            pytest.raises(WeightguardError, match=r"'gate_proj.weight': give `pieces`"),
            watched.update(new),
        ):
            raise AssertionError("the block began")
        assert watched.check().findings == ()
        with watched.update(new, pieces=others):
            model.load_state_dict(before)
        assert watched.coverage() == coverage
        with watched.update(new):
            pass
        assert watched.coverage() == coverage, "the pieces of the last update hold"
        assert [i.code for i in watched.incidents] == ["WG903"] * 3


def test_an_update_to_a_smaller_model_is_refused(
    weights: dict[str, torch.Tensor], manifest: Manifest, tmp_path: Path
) -> None:
    model = fused(weights)
    pieces = packed_pieces(live(model), manifest, PACKED)
    with (
        guard(model, manifest, pieces=pieces, scrub=None) as watched,
        renamed(weights, tmp_path, 300) as new,
    ):
        with (
            pytest.raises(WeightguardError, match="which has 600000 in this manifest"),
            watched.update(new),
        ):
            raise AssertionError("the block began")
        assert (watched.state, watched.check().findings) == (State.HEALTHY, ())


def test_names_last_through_updates(weights: dict[str, torch.Tensor], manifest: Manifest) -> None:
    model = torch.nn.Module()
    model.register_parameter("one", torch.nn.Parameter(weights["q_proj.weight"].float()))
    model.register_parameter("two", torch.nn.Parameter(weights["k_proj.weight"].clone()))
    with guard(model, manifest, names={"one": "q_proj.weight"}, scrub=None) as watched:
        entry = watched.baseline.tensors["one"]
        assert (entry.record, entry.attestation) == ("q_proj.weight", "transformed")
        with watched.update(manifest), torch.no_grad():
            model.one[:, 3:5] += 1
        codes = [i.code for i in watched.incidents if i.tensor == "one"]
        assert codes == ["WG401"], "it is named still, so it differs from its record"
