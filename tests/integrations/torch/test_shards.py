"""DTensors and FSDP2: what each rank holds is attested, alone or by all ranks together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from tests.integrations.torch.ranks import gloo, run_ranks
from weightguard import Manifest, WeightguardError, fingerprint
from weightguard_integrations.torch import GroupRanks, TorchGuard, guard, packed_pieces
from weightguard_integrations.torch.live import TorchAdapter

SPLIT = {
    "rows": ((64, 96), 0), "columns": ((40, 130), 1), "narrow": ((16, 32), 1),
    "folded": ((6, 16), 0), "vector": ((129,), 0), "uneven": ((33, 100), 0),
    "few": ((1, 70), 0), "experts": ((4, 6, 96), 2), "outputs": ((4, 6, 96), 1),
    "whole": ((16, 70), None),
}  # fmt: skip
DTYPES = {"narrow": torch.float32, "vector": torch.float32, "experts": torch.float8_e4m3fn}
TOGETHER = {"columns", "narrow", "folded", "vector", "experts", "outputs"}


def make_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    split = {
        name: torch.randn(shape).to(DTYPES.get(name, torch.bfloat16))
        for name, (shape, _) in SPLIT.items()
    }
    grid = {"grid": torch.randn(64, 130), "copies": torch.randn(32, 66)}
    layers = {
        "0.weight": torch.randn(65, 100), "0.bias": torch.randn(65),
        "1.weight": torch.randn(33, 65), "1.bias": torch.randn(33), "scale": torch.randn(7, 64),
    }  # fmt: skip
    fused = {f"{name}_proj.weight": torch.randn(64, 96) for name in ("q", "k", "v", "o")}
    return {**split, **grid, **layers, **fused}


class Holder(nn.Module):
    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def spread(tensor: torch.Tensor, mesh: DeviceMesh, placements: list[Placement]) -> DTensor:
    """Each rank takes its part of what all of them have: nothing is sent."""
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


@contextmanager
def sealed(model: nn.Module, manifest: Manifest, **how: object) -> Iterator[TorchGuard]:
    with guard(model, manifest, scrub=None, on_incident=["repair"], **how) as watched:  # type: ignore[arg-type]
        yield watched


def flip(part: torch.Tensor, element: int, bit: int) -> None:
    flat = part.data.view(-1).view(torch.uint8)
    flat[element * part.element_size() + bit // 8] ^= 1 << bit % 8


def found(watched: TorchGuard) -> list[str]:
    # not all of a manifest is in each of these models
    return [i.code for i in watched.incidents if i.code != "WG402"]


def work(rank: int, ranks: int, folder: str) -> None:
    with gloo(rank, ranks, Path(folder)):
        weights = load_file(Path(folder) / "m.safetensors")
        with Manifest.read(Path(folder) / "m.weightguard.json") as manifest:
            check_placements(rank, ranks, weights, manifest)
            if ranks == 4:
                check_two_dimensions(rank, weights, manifest)
            check_fsdp(rank, ranks, weights, manifest, folder)
            check_declared(rank, ranks, weights, manifest, folder)


def check_placements(
    rank: int, ranks: int, weights: dict[str, torch.Tensor], manifest: Manifest
) -> None:
    mesh = init_device_mesh("cpu", (ranks,))
    model = Holder(
        {
            name: spread(weights[name], mesh, [Replicate() if dim is None else Shard(dim)])
            for name, (_, dim) in SPLIT.items()
        }
    )
    with sealed(model, manifest) as watched:
        assert found(watched) == []
        entries = watched.baseline.tensors
        local = {n: p.to_local() for n, p in model.named_parameters()}
        assert watched.coverage().covered == sum(p.nbytes for p in local.values())
        assert entries["whole"].attestation == "attested"
        assert {e.attestation for n, e in entries.items() if n != "whole"} == {"transformed"}
        assert {n for n, e in entries.items() if "summed over" in e.how} == TOGETHER
        watched.check()
        if local["columns"].numel():
            flip(local["columns"], 5, 3)
        watched.check()
        assert found(watched) == ["WG901", "WG907"]

    for name in sorted(TOGETHER | {"rows"}):
        holder = 1
        dim, part = SPLIT[name][1], local[name]
        element = part.numel() // 2
        if rank == holder:
            flip(part, element, 6)
        with sealed(model, manifest) as watched:
            differs = [i.finding for i in watched.incidents if i.code == "WG401"]
        if name == "rows":  # each rank verifies its own
            assert len(differs) == (rank == holder)
        else:
            (difference,) = differs
            assert difference.location.tensor == name
            (row,) = difference.evidence["rows"]
            assert row["ranks"] == [holder]
            assert f"which rank {holder} holds" in difference.message
            if rank == holder:
                index = list(torch.unravel_index(torch.tensor(element), part.shape))
                index[dim] += holder * -(-weights[name].shape[dim] // ranks)
                assert list(difference.location.element) == [int(i) for i in index]
        if rank == holder:
            flip(part, element, 6)


def check_two_dimensions(rank: int, weights: dict[str, torch.Tensor], manifest: Manifest) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    model = Holder(
        {
            "grid": spread(weights["grid"], mesh, [Shard(0), Shard(1)]),
            "copies": spread(weights["copies"], mesh, [Replicate(), Shard(1)]),
            "whole": spread(weights["whole"], mesh, [Replicate(), Replicate()]),
        }
    )
    with sealed(model, manifest) as watched:
        assert found(watched) == []
        assert watched.coverage().trusted == 0
    if rank == 3:
        flip(model.copies.to_local(), 40, 9)
        flip(model.grid.to_local(), 3 * 65 + 4, 9)
    with sealed(model, manifest) as watched:
        by_tensor = {
            i.finding.location.tensor: i.finding for i in watched.incidents if i.code == "WG401"
        }
        assert by_tensor["grid"].location.element == (35, 69)
        assert by_tensor["grid"].evidence["rows"][0]["ranks"] == [3]
        # each copy is verified by its own ranks: 3 is the second of its two
        assert ("copies" in by_tensor) == (rank in (2, 3))
        if rank in (2, 3):
            assert by_tensor["copies"].evidence["rows"][0]["ranks"] == [1]


class Layers(nn.Sequential):
    """Two layers and a parameter of the root, which stays gathered after a forward pass."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__(nn.Linear(100, 65), nn.Linear(65, 33))
        self.scale = nn.Parameter(torch.empty(7, 64))
        self.load_state_dict({name: weights[name] for name in self.state_dict()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale.sum()


def check_fsdp(
    rank: int, ranks: int, weights: dict[str, torch.Tensor], manifest: Manifest, folder: str
) -> None:
    mesh = init_device_mesh("cpu", (ranks,))
    model = Layers(weights)
    for part in (*model.children(), model):
        fully_shard(part, mesh=mesh)
    inputs = torch.ones(2, 100)
    with guard(model, manifest, scrub="10GB/s", on_incident=[]) as watched:
        for _ in range(5):  # the first one sets FSDP up
            clean = model(inputs)
        assert watched.status().passes > 0
        assert found(watched) == []
    assert not isinstance(model.scale, DTensor)
    golden = Path(folder) / "m.safetensors"
    if rank == 1:  # before the guard, and more than residues restore
        model[1].weight.to_local().data[2, 3:9] += 1
    with sealed(model, manifest, golden=golden) as watched:
        assert found(watched) == (["WG401", "WG907"] if rank == 1 else [])
        assert watched.coverage().transformed == watched.coverage().covered
    with sealed(model, manifest, golden=golden) as watched:
        assert found(watched) == []
        shards = {name: p.to_local() for name, p in model.named_parameters()}
        for _ in range(3):
            model(inputs)
            assert not isinstance(model.scale, DTensor)
            watched.check()
            assert found(watched) == []
        if shards["scale"].numel():
            flip(shards["scale"], 3, 30)
        model.reshard()
        shards["0.weight"].data[0, :50] = 0  # more than residues restore
        model(inputs)  # the guard's step comes first, and repairs what is then gathered
        codes = found(watched)
        assert codes.count("WG901") == codes.count("WG907") == 1 + bool(shards["scale"].numel())
        assert torch.equal(model(inputs), clean)

        with torch.no_grad():
            model[1].weight.mul_(2)
        watched.check()
        assert "WG902" in found(watched)[len(codes) :]


def check_declared(
    rank: int, ranks: int, weights: dict[str, torch.Tensor], manifest: Manifest, folder: str
) -> None:
    """What a serving engine holds: a fused qkv by rows, and a row-parallel o along columns."""
    model = nn.Module()
    model.qkv_proj, model.o_proj = nn.Module(), nn.Module()
    rows = [weights[f"{name}_proj.weight"].chunk(ranks)[rank] for name in ("q", "k", "v")]
    columns = weights["o_proj.weight"].chunk(ranks, 1)[rank].clone()
    model.qkv_proj.weight = nn.Parameter(torch.cat(rows), requires_grad=False)
    model.o_proj.weight = nn.Parameter(columns, requires_grad=False)
    packed = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    pieces = packed_pieces(
        TorchAdapter(model).tensors(), manifest, packed,
        rank=rank, ranks=ranks, by_columns=["o_proj"],
    )  # fmt: skip
    golden = Path(folder) / "m.safetensors"
    with sealed(model, manifest, pieces=pieces, ranks=GroupRanks(), golden=golden) as watched:
        assert found(watched) == []
        assert watched.coverage().transformed == watched.coverage().total
        for weight in (model.qkv_proj.weight, model.o_proj.weight):
            before = weight.clone()
            weight.data[3:5] = 0
            watched.check()
            assert found(watched)[-2:] == ["WG901", "WG907"]
            assert watched.incidents[-1].finding.evidence["source"] == "golden copy"
            assert torch.equal(weight, before)
    # one rank that cannot seal: it says so, and the others do not wait for it
    short = {**pieces, "o_proj.weight": [pieces["o_proj.weight"][0]._replace(runs=1)]}
    with pytest.raises(WeightguardError, match=r"declare every piece|another rank"):
        guard(model, manifest, pieces=short if rank == 0 else pieces, ranks=GroupRanks())


@pytest.mark.parametrize("ranks", [2, 4])
def test_shards_are_attested_by_their_ranks(tmp_path: Path, ranks: int) -> None:
    save_file(make_weights(), tmp_path / "m.safetensors")
    with fingerprint(tmp_path / "m.safetensors") as manifest:
        manifest.write(tmp_path / "m.weightguard.json")
    run_ranks(work, ranks, tmp_path)
