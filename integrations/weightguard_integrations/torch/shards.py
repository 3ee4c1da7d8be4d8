"""DTensors: what a rank holds of a parameter, and of which attested bytes that is a part.

FSDP2 keeps its shards as DTensors and puts a gathered copy in their place for a while: the shard is
what is guarded, whatever the module shows.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightguard.errors import WeightguardError
from weightguard.guard.pieces import Piece
from weightguard.guard.shares import Declared, Ranks, Together, recorded
from weightguard.manifest import Manifest
from weightguard.tensor import RowLayout
from weightguard_integrations.torch.dtypes import dtype_of
from weightguard_integrations.torch.parallel import GroupRanks

if TYPE_CHECKING:
    import torch
    from torch import nn

REMEDY = "give `pieces` that are of its records"


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is spread over ranks; imports nothing that is not there."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this rank holds of a tensor, itself if it is not spread over ranks."""
    import torch

    if not is_dtensor(tensor):
        return tensor
    spread: Any = tensor
    with torch.no_grad():
        part: torch.Tensor = spread.to_local()
    return part


def kept_shards(root: nn.Module) -> dict[str, torch.Tensor]:
    """Return the shards that FSDP2 keeps of a model's parameters, by name.

    Gathered copies are given up for them, as after a forward pass.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    wrapped = [m for m in root.modules() if fsdp is not None and isinstance(m, fsdp.FSDPModule)]
    for module in wrapped:
        module.reshard()
    if not wrapped:
        return {}
    named = root.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in named if is_dtensor(parameter)}


@dataclass(frozen=True, slots=True)
class Told:
    """What an operator says of a model's tensors.

    ``names`` maps live tensors to the manifest's. ``pieces`` says of which attested bytes they are
    made up; those that are not whole rows are verified by all of ``ranks``.
    """

    names: Mapping[str, str]
    pieces: Mapping[str, Sequence[Piece]]
    ranks: Ranks | None

    def but(
        self,
        names: Mapping[str, str] | None,
        pieces: Mapping[str, Sequence[Piece]] | None,
        ranks: Ranks | None,
    ) -> Told:
        """Return this with what is given in place of what it said."""
        return Told(
            self.names if names is None else names,
            self.pieces if pieces is None else pieces,
            self.ranks if ranks is None else ranks,
        )

    def declaration(self, tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> Declared:
        """Return of which attested bytes a model's tensors are made up.

        DTensors say it themselves: along their first dimension each rank verifies its own rows,
        else the ranks of their mesh do together. Raises WeightguardError for names and pieces that
        are not of the manifest's records.
        """
        primary = _primary(manifest)
        for live, record in self.names.items():
            if record not in primary:
                raise WeightguardError(
                    f"`names` calls {live[:200]!r} {record[:200]!r}, which is no attested tensor"
                )
        found, together = _spread(tensors, manifest, self.names, primary)
        parts = [name for name, listed in self.pieces.items() if not _whole_rows(listed, manifest)]
        if self.ranks is not None and parts:
            together.append(Together(frozenset(parts), self.ranks))
        if not together:  # else sealing tells the other ranks, which wait for this one
            for name, listed in self.pieces.items():
                _refuse_misfits(name, listed, manifest)
        return Declared({**found, **self.pieces}, together)


def _spread(
    tensors: Mapping[str, torch.Tensor],
    manifest: Manifest,
    names: Mapping[str, str],
    primary: Mapping[str, str],
) -> tuple[dict[str, Sequence[Piece]], list[Together]]:
    """Return the pieces of DTensors, and which of them several ranks verify together."""
    found: dict[str, Sequence[Piece]] = {}
    spread: list[tuple[Any, list[str]]] = []
    for name, tensor in tensors.items():
        record = primary.get(names.get(name, name), name)
        if not is_dtensor(tensor) or not _is_of(tensor, manifest, record):
            continue
        piece, group = _piece(tensor, record), _group(tensor)
        if piece is None or group is None:
            continue
        found[name] = [piece]
        if not _by_rows(tensor, recorded(manifest, record).layout):
            members = next((members for known, members in spread if known is group), None)
            if members is None:
                spread.append((group, members := []))
            members.append(name)
    return found, [Together(frozenset(members), GroupRanks(group)) for group, members in spread]


def _primary(manifest: Manifest) -> dict[str, str]:
    """Return the records' names by all names that they go by."""
    records = manifest.document.tensors.items()
    return {n: name for name, record in records for n in (name, *record.aliases)}


def _is_of(tensor: torch.Tensor, manifest: Manifest, name: str) -> bool:
    """Return whether a spread tensor is one of the manifest's by name, dtype and shape."""
    record, dtype = manifest.document.tensors.get(name), dtype_of(tensor)
    if record is None or dtype is None:
        return False
    return (record.dtype, record.shape) == (dtype.name, tuple(tensor.shape))


def _sharded_dims(tensor: torch.Tensor) -> list[int]:
    """Return the dimensions of the mesh that a tensor is split along."""
    from torch.distributed.tensor import Replicate

    placements: Any = tensor.placements  # type: ignore[attr-defined]
    return [dim for dim, placement in enumerate(placements) if type(placement) is not Replicate]


def _piece(tensor: torch.Tensor, record: str) -> Piece | None:
    """Return which bytes this rank holds, None where they are no runs of equal distance.

    Rank r of n has elements r * ceil(size / n) and following of a dimension, as torch.chunk gives.
    """
    from torch.distributed.tensor import Shard

    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    placements: Any = tensor.placements  # type: ignore[attr-defined]
    shape = list(tensor.shape)
    offsets, sizes = [0] * len(shape), list(shape)
    for mesh_dim in _sharded_dims(tensor):
        placement = placements[mesh_dim]
        if type(placement) is not Shard:
            return None
        dim, own = placement.dim, mesh.get_local_rank(mesh_dim)
        step = -(-sizes[dim] // mesh.size(mesh_dim))
        first = min(own * step, sizes[dim])
        offsets[dim] += first
        sizes[dim] = min(step, sizes[dim] - first)
    if list(local_part(tensor).shape) != sizes:
        return None
    return _runs(record, shape, offsets, sizes, tensor.element_size())


def _runs(
    record: str, shape: list[int], offsets: list[int], sizes: list[int], element: int
) -> Piece | None:
    """Return a box of a tensor as runs of bytes, None where their distances are not all equal."""
    if 0 in sizes:
        return Piece(record, 0, 0)
    cut = [dim for dim, size in enumerate(shape) if sizes[dim] != size]
    if not cut:
        return Piece(record, 0, math.prod(shape) * element)
    last = cut[-1]
    inner = element * math.prod(shape[last + 1 :])
    start = sum(
        offset * element * math.prod(shape[dim + 1 :]) for dim, offset in enumerate(offsets)
    )
    if len(cut) > 1 and (len(cut) > 2 or math.prod(shape[: cut[0]]) != 1):
        return None
    runs = math.prod(sizes[:last])
    return Piece(record, start, start + sizes[last] * inner, shape[last] * inner, runs)


def _group(tensor: torch.Tensor) -> Any:
    """Return the process group whose ranks hold a tensor once together, None if there is none."""
    import torch.distributed as dist

    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    dims = _sharded_dims(tensor)
    if len(dims) == 1:
        return mesh.get_group(dims[0])
    whole = len(dims) == mesh.ndim > 0 and mesh.size() == dist.get_world_size()
    return dist.group.WORLD if whole else None


def _by_rows(tensor: torch.Tensor, layout: RowLayout) -> bool:
    """Return whether every rank holds whole residue rows: the same answer on all of them."""
    from torch.distributed.tensor import Shard

    placements: Any = tensor.placements  # type: ignore[attr-defined]
    first = all(placements[dim] == Shard(0) for dim in _sharded_dims(tensor))
    inner = math.prod(tensor.shape[1:])
    return first and tensor.dim() > 0 and inner % max(layout.row_elements, 1) == 0


def _whole_rows(pieces: Sequence[Piece], manifest: Manifest) -> bool:
    rows = [recorded(manifest, piece.record).layout.row_bytes for piece in pieces]
    return all(
        piece.runs == 1 and not piece.start % row and not piece.stop % row
        for piece, row in zip(pieces, rows, strict=True)
    )


def _refuse_misfits(live: str, pieces: Sequence[Piece], manifest: Manifest) -> None:
    for piece in pieces:
        view = recorded(manifest, piece.record)
        if not piece.inside(view.nbytes, view.dtype.block_bytes):
            raise WeightguardError(
                f"{live[:200]!r} is declared to hold bytes {piece.start}:{piece.stop} of "
                f"{piece.record[:200]!r}, which has {view.nbytes} in this manifest: {REMEDY}"
            )
