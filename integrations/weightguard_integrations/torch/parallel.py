"""Tensor-parallel verification: partial residues of each rank, one all-reduce, no gather.

See ``weightguard.guard.shares`` for what it proves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weightguard import Manifest
from weightguard.guard.shares import ParallelReport, Share, recorded, verify_shares
from weightguard.scan.kernel import block_residues
from weightguard.tensor import RowLayout, TensorView
from weightguard_integrations.torch.dtypes import dtype_of
from weightguard_integrations.torch.row_sums import CHUNK_ELEMENTS, device_residues

if TYPE_CHECKING:
    import torch


class GroupRanks:
    """The ranks of a ``torch.distributed`` group; see ``Ranks``."""

    def __init__(self, group: Any = None):
        """``group`` is a process group, None for all processes."""
        import torch.distributed as dist

        self._group = group
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)

    def add_up(self, array: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """See Ranks."""
        import torch
        import torch.distributed as dist

        total = torch.from_numpy(array.view(np.int64).copy())
        backend = dist.get_backend(self._group)
        moved = total.cuda() if backend == "nccl" else total  # which has no CPU memory
        dist.all_reduce(moved, group=self._group)
        return moved.cpu().numpy().view(np.uint64)


@dataclass(frozen=True, slots=True)
class Slice:
    """A local matrix [rows, columns] (or vector, [columns]) and where it begins in a record.

    A record counts as a matrix of its last dimension's columns. Pass views of a fused tensor.
    """

    record: str
    tensor: torch.Tensor
    row: int = 0
    column: int = 0


def verify_parallel(
    slices: Sequence[Slice], manifest: Manifest, records: Sequence[str], group: Any = None
) -> ParallelReport:
    """Compare what the ranks of ``group`` hold of ``records`` with the manifest's row residues.

    A collective call: every rank names the same records, its own slices, and the same manifest. A
    part that several ranks hold alike (shared heads) is given by one of them. Raises
    WeightguardError on every rank where the slices of any do not fit, or do not make up the
    records exactly once by their numbers of words.
    """
    views = {name: recorded(manifest, name) for name in records}
    problem = next((p for s in slices if (p := _misfit(s, views))), None)
    shares = [] if problem else [_share(part, views[part.record]) for part in slices]
    return verify_shares(shares, manifest, records, GroupRanks(group), problem)


def _matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a tensor read as a matrix."""
    columns = shape[-1] if shape else 1
    return int(np.prod(shape[:-1], dtype=np.int64)), int(columns)


def _misfit(part: Slice, views: dict[str, TensorView]) -> str | None:
    view = views.get(part.record)
    if view is None:
        return f"a slice is of {part.record[:200]!r}, which is not among the records"
    (rows, columns), (all_rows, all_columns) = _matrix(part.tensor.shape), _matrix(view.shape)
    inside = 0 <= part.row <= all_rows - rows and 0 <= part.column <= all_columns - columns
    plain = view.dtype.block_elements == 1
    if dtype_of(part.tensor) != view.dtype or not inside or not plain:
        return (
            f"a slice {list(part.tensor.shape)} of {part.tensor.dtype} at [{part.row}, "
            f"{part.column}] does not lie in {part.record[:200]!r}, {view.dtype.name} "
            f"{list(view.shape)}"
        )
    return None


def _share(part: Slice, view: TensorView) -> Share:
    """Return a slice's share of its record's rows, which may fold several of the slice's."""
    rows, columns = _matrix(part.tensor.shape)
    if not columns:
        rows = 0
    words = view.dtype.block_bytes // view.dtype.word_bytes
    _, all_columns = _matrix(view.shape)
    starts = (np.arange(part.row, part.row + rows) * all_columns + part.column) * words
    row, first = np.divmod(starts, max(view.layout.row_words, 1))
    residues = slice_residues(part.tensor) if rows else np.zeros((0, 2), np.uint64)
    return Share(part.record, row, first, np.full(rows, columns * words), residues)


def slice_residues(tensor: torch.Tensor) -> NDArray[np.uint64]:
    """Return R and S of each row [rows, columns] of a tensor by itself, uint64 (rows, 2).

    CPU memory goes through the native kernel, other memory is reduced where it lies.
    """
    import torch

    dtype = dtype_of(tensor)
    assert dtype is not None
    rows, columns = _matrix(tensor.shape)
    matrix = tensor.detach().reshape(rows, columns)
    if tensor.device.type != "cpu":
        return device_residues(matrix, dtype.word_bytes).cpu().numpy().view(np.uint64)
    nbytes, words = columns * dtype.block_bytes, columns * dtype.block_bytes // dtype.word_bytes
    layout = RowLayout(rows, columns, nbytes, words, columns)
    step = max(1, CHUNK_ELEMENTS // columns)
    parts = [
        block_residues(dtype, layout, chunk.contiguous().reshape(-1).view(torch.uint8).numpy(), 0)
        for chunk in torch.split(matrix, step)
    ]
    return np.concatenate(parts)
