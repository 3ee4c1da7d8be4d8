"""Fused and sliced weights of serving engines, declared as pieces of attested tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from weightguard.errors import WeightguardError
from weightguard.guard import LiveTensor, Piece
from weightguard.manifest import Manifest, recorded_view

PackedModules = Mapping[str, Sequence[str]]
"""Fused module to its parts in order: ``{"qkv_proj": ["q_proj", "k_proj", "v_proj"]}``."""


def packed_pieces(
    tensors: Iterable[LiveTensor],
    manifest: Manifest,
    packed: PackedModules,
    *,
    rank: int = 0,
    ranks: int = 1,
    by_columns: Collection[str] = (),
) -> dict[str, list[Piece]]:
    """Return the pieces of each live tensor that is fused, or holds a rank's share of the rows.

    With several ranks each part is split evenly along its first dimension, as column-parallel
    layers are, and those of modules named in ``by_columns`` along their last, as row-parallel ones
    (``["o_proj", "down_proj"]``): their ranks verify these together, see ``guard``. Tensors that
    are neither, or split otherwise (heads that ranks share), are left out. Raises WeightguardError
    for a rank that there is not.
    """
    if not 0 <= rank < ranks:
        raise WeightguardError(f"rank {rank} is none of {ranks}")
    declared = {}
    for tensor in tensors:
        parts = _parts(tensor.name, packed)
        if len(parts) == 1 and ranks == 1:
            continue
        share = _columns if _module(tensor.name) in by_columns else _share
        pieces = [share(manifest, part, rank, ranks) for part in parts]
        found = [piece for piece in pieces if piece is not None]
        fits = sum(piece.nbytes for piece in found) == tensor.nbytes
        if fits and len(found) == len(parts):
            declared[tensor.name] = found
    return declared


def _module(name: str) -> str:
    """Return the name of the module that a tensor belongs to, without its path."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _parts(name: str, packed: PackedModules) -> list[str]:
    path = name.split(".")
    for number, module in enumerate(path):
        if module in packed:
            return [".".join([*path[:number], p, *path[number + 1 :]]) for p in packed[module]]
    return [name]


def _share(manifest: Manifest, name: str, rank: int, ranks: int) -> Piece | None:
    record = manifest.document.tensors.get(name)
    if record is None:
        return None
    view = recorded_view(name, record)
    share, rest = divmod(view.nbytes, ranks)
    row = view.layout.row_bytes
    if rest or not share or share % row or (record.shape and record.shape[0] % ranks):
        return None
    return Piece(name, rank * share, (rank + 1) * share)


def _columns(manifest: Manifest, name: str, rank: int, ranks: int) -> Piece | None:
    record = manifest.document.tensors.get(name)
    if record is None or len(record.shape) < 2 or record.shape[-1] % ranks:
        return None
    view = recorded_view(name, record)
    row = view.nbytes // math.prod(record.shape[:-1])
    run = row // ranks
    return Piece(name, rank * run, (rank + 1) * run, row, math.prod(record.shape[:-1]))
