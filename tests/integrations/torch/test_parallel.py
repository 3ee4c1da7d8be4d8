"""Ranks verify what they hold together: partial residues, one reduction, no gathered weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from tests.integrations.torch.ranks import gloo, run_ranks
from weightguard import Manifest, WeightguardError, fingerprint
from weightguard_integrations.torch.parallel import (
    Slice,
    slice_residues,
    verify_parallel,
)
from weightguard_integrations.torch.row_sums import device_residues

RECORDS = ["q", "k", "v", "down", "narrow", "bias", "wide"]
WEIGHTS = {
    "q": torch.Size((64, 96)), "k": torch.Size((32, 96)), "v": torch.Size((32, 96)),
    "down": torch.Size((40, 128)), "narrow": torch.Size((16, 32)), "bias": torch.Size((128,)),
    "wide": torch.Size((8, 80)),
}  # fmt: skip
DTYPES = {"down": torch.float8_e4m3fn, "narrow": torch.float32, "wide": torch.float64}


def held(weights: dict[str, torch.Tensor], rank: int, ranks: int) -> list[Slice]:
    """A fused qkv by rows, the others by columns, as views of what one rank holds."""

    def share(name: str) -> torch.Tensor:
        return weights[name].view(torch.uint8).chunk(ranks, -1)[rank].view(weights[name].dtype)

    parts = [weights[name].chunk(ranks)[rank] for name in ("q", "k", "v")]
    fused, at, slices = torch.cat(parts), 0, []
    for name, part in zip(("q", "k", "v"), parts, strict=True):
        slices.append(Slice(name, fused[at : at + len(part)], row=rank * len(part)))
        at += len(part)
    for name in RECORDS[3:]:
        local = share(name).clone()
        slices.append(Slice(name, local, column=rank * local.shape[-1]))
    return slices


def flip(part: Slice, row: int, column: int, bit: int) -> None:
    matrix = part.tensor.reshape(-1, part.tensor.shape[-1]).view(torch.uint8)
    matrix[row, column * part.tensor.element_size() + bit // 8] ^= 1 << bit % 8


def work(rank: int, ranks: int, folder: str) -> None:
    with gloo(rank, ranks, Path(folder)):
        weights = load_file(Path(folder) / "m.safetensors")
        with Manifest.read(Path(folder) / "m.weightguard.json") as manifest:
            check_ranks(rank, ranks, weights, manifest)


def check_ranks(
    rank: int, ranks: int, weights: dict[str, torch.Tensor], manifest: Manifest
) -> None:
    slices = held(weights, rank, ranks)
    sent = []
    reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, **how: object) -> None:
        sent.append(tensor.numel() * tensor.element_size())
        reduce(tensor, **how)

    dist.all_reduce = counted
    clean = verify_parallel(slices, manifest, RECORDS)
    assert clean.rows == 0
    assert sent == [clean.reduced_bytes]
    rows = sum(view.layout.rows for view in manifest.views())
    assert clean.reduced_bytes == 24 * (rows + 1) < sum(w.nbytes for w in weights.values()) / 5

    generator = np.random.default_rng(ranks)
    for part in slices:
        for _ in range(3):
            holder = int(generator.integers(ranks))
            row = int(generator.integers(part.tensor.numel() // part.tensor.shape[-1]))
            column = int(generator.integers(part.tensor.shape[-1]))
            bit = int(generator.integers(8 * part.tensor.element_size()))
            if rank == holder:
                flip(part, row, column, bit)
            found = verify_parallel(slices, manifest, RECORDS)
            if rank == holder:
                flip(part, row, column, bit)
            size = part.tensor.shape
            by_rows = part.record in ("q", "k", "v")
            global_row = row + (holder * size[0] if by_rows else 0)
            global_column = column + (0 if by_rows else holder * size[-1])
            (difference,) = found.located
            view = next(v for v in manifest.views() if v.name == part.record)
            element = global_row * view.shape[-1] + global_column
            words = view.dtype.block_bytes // view.dtype.word_bytes
            expected_row, inner = divmod(element, view.layout.row_elements)
            assert difference.record == part.record
            assert difference.row == expected_row
            assert difference.word is not None
            assert difference.word // words == inner
            assert difference.ranks == (holder,)

    with pytest.raises(WeightguardError, match="each part must be given once"):
        verify_parallel(slices[1:] if rank == 0 else slices, manifest, RECORDS)
    wrong = [Slice("q", slices[0].tensor, row=1000)] if rank == 0 else slices
    with pytest.raises(WeightguardError, match=r"does not lie in|another rank"):
        verify_parallel(wrong, manifest, RECORDS)


@pytest.mark.parametrize("ranks", [2, 4])
def test_flips_are_located_to_rank_row_and_column(tmp_path: Path, ranks: int) -> None:
    torch.manual_seed(ranks)
    weights = {
        name: torch.randn(shape).to(DTYPES.get(name, torch.bfloat16))
        for name, shape in WEIGHTS.items()
    }
    save_file(weights, tmp_path / "m.safetensors")
    with fingerprint(tmp_path / "m.safetensors") as manifest:
        manifest.write(tmp_path / "m.weightguard.json")
    run_ranks(work, ranks, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int8])
def test_the_kernel_and_plain_torch_agree(dtype: torch.dtype) -> None:
    matrix = torch.randint(0, 256, (9, 200 * dtype.itemsize), dtype=torch.uint8).view(dtype)
    native = slice_residues(matrix[:, 3:150])
    plain = device_residues(matrix[:, 3:150], min(dtype.itemsize, 4))
    assert np.array_equal(native, plain.numpy().view(np.uint64))
