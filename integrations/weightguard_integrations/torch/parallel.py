"""Tensor-parallel verification: partial residues of each rank, one all-reduce, no gather.

Residues add up (fingerprint-v1, section 4): each rank takes those of its own slices with the
columns that they have in the whole tensor, and the sum over the ranks is the manifest's. It proves
that no row differs in one or two words; more of them may cancel, as in any checksum of 128 bits
a row. All ranks see the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weightguard import Manifest, WeightguardError
from weightguard.locate import RowDelta, delta_column
from weightguard.manifest import recorded_view
from weightguard.scan.kernel import block_residues
from weightguard.tensor import RowLayout, TensorView
from weightguard_integrations.torch.dtypes import dtype_of
from weightguard_integrations.torch.row_sums import CHUNK_ELEMENTS, device_residues

if TYPE_CHECKING:
    import torch

MAX_LOCATED = 4096
"""Damaged rows that are followed to their ranks."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A local matrix [rows, columns] (or vector, [columns]) and where it begins in a record.

    A record counts as a matrix of its last dimension's columns. Pass views of a fused tensor.
    """

    record: str
    tensor: torch.Tensor
    row: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class ParallelDifference:
    """A row of residues of a record that the ranks together do not hold.

    ``word`` is the only word of the row that can have changed alone, None where several must
    have. ``ranks`` hold that word, or without it a part of the row.
    """

    record: str
    row: int
    word: int | None
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParallelReport:
    """All damaged rows, ``located`` the first MAX_LOCATED, and the bytes a rank reduces."""

    rows: int
    located: tuple[ParallelDifference, ...]
    reduced_bytes: int


def verify_parallel(
    slices: Sequence[Slice], manifest: Manifest, records: Sequence[str], group: Any = None
) -> ParallelReport:
    """Compare what the ranks of ``group`` hold of ``records`` with the manifest's row residues.

    A collective call: every rank names the same records, its own slices, and the same manifest. A
    part that several ranks hold alike (shared heads) is given by one of them. Raises
    WeightguardError on every rank where the slices of any do not fit, or do not make up the
    records exactly once by their numbers of words.
    """
    import torch
    import torch.distributed as dist

    views = [_view(manifest, name) for name in records]
    firsts = dict(
        zip(records, np.cumsum([0, *(v.layout.rows for v in views)]).tolist(), strict=False)
    )
    by_name = dict(zip(records, views, strict=True))
    total = np.zeros((sum(view.layout.rows for view in views) + 1, 3), np.uint64)
    problem = next((p for s in slices if (p := _misfit(s, by_name))), None)
    if problem is None:
        for part in slices:
            _add(total[firsts[part.record] :], part, by_name[part.record])
    total[-1, 0] = problem is not None  # told to all in the same reduction: no rank waits alone
    reduced = torch.from_numpy(total.view(np.int64))
    dist.all_reduce(reduced, group=group)
    if problem or total[-1, 0]:
        raise WeightguardError(problem or "the slices of another rank do not fit the manifest")
    deltas = _deltas(total, firsts, by_name, manifest)
    shown = deltas[:MAX_LOCATED]
    holders = np.zeros((len(shown), dist.get_world_size(group)), np.int64)
    if shown:
        own = dist.get_rank(group)
        for number, (name, delta) in enumerate(shown):
            word = _word(delta, by_name[name])
            holders[number, own] = any(_holds(s, by_name[name], delta.row, word) for s in slices
                                       if s.record == name)  # fmt: skip
        dist.all_reduce(torch.from_numpy(holders), group=group)
    located = tuple(
        ParallelDifference(
            name, delta.row, _word(delta, by_name[name]), tuple(np.flatnonzero(ranks).tolist())
        )
        for (name, delta), ranks in zip(shown, holders, strict=True)
    )
    return ParallelReport(len(deltas), located, total.nbytes + holders.nbytes)


def _view(manifest: Manifest, name: str) -> TensorView:
    record = manifest.document.tensors.get(name)
    if record is None:
        raise WeightguardError(f"no attested tensor is called {name[:200]!r}")
    return recorded_view(name, record)


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


def _add(total: NDArray[np.uint64], part: Slice, view: TensorView) -> None:
    """Add a slice's residues to those of its record's rows, which may fold several of its own."""
    rows, columns = _matrix(part.tensor.shape)
    if not rows or not columns:
        return
    words = view.dtype.block_bytes // view.dtype.word_bytes
    _, all_columns = _matrix(view.shape)
    residues = slice_residues(part.tensor)
    starts = (np.arange(part.row, part.row + rows) * all_columns + part.column) * words
    row, first = np.divmod(starts, view.layout.row_words)
    weighted = residues[:, 1] + first.astype(np.uint64) * residues[:, 0]
    np.add.at(total[:, 0], row, residues[:, 0])
    np.add.at(total[:, 1], row, weighted)
    np.add.at(total[:, 2], row, np.uint64(columns * words))


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


def _deltas(
    total: NDArray[np.uint64],
    firsts: dict[str, int],
    views: dict[str, TensorView],
    manifest: Manifest,
) -> list[tuple[str, RowDelta]]:
    found = []
    for name, view in views.items():
        observed = total[firsts[name] : firsts[name] + view.layout.rows]
        wrong = np.flatnonzero(observed[:, 2] != view.layout.row_words)
        if len(wrong):
            raise WeightguardError(
                f"the ranks' slices hold {int(observed[wrong[0], 2])} words of row {wrong[0]} of "
                f"{name[:200]!r}, which has {view.layout.row_words}: each part must be given once"
            )
        expected = manifest.sidecar.read(f"{manifest.numbers[name]}/residues")
        changes = observed[:, :2] - expected
        found += [
            (name, RowDelta(int(row), int(changes[row, 0]), int(changes[row, 1])))
            for row in np.flatnonzero(changes.any(axis=1))
        ]
    return found


def _word(delta: RowDelta, view: TensorView) -> int | None:
    column = delta_column(delta)
    return column if column is not None and column < view.layout.row_words else None


def _holds(part: Slice, view: TensorView, row: int, word: int | None) -> bool:
    """Return whether a slice has a word of a record's residue row, or any where it is None."""
    words = view.dtype.block_bytes // view.dtype.word_bytes
    rows, columns = _matrix(part.tensor.shape)
    _, all_columns = _matrix(view.shape)
    first = row * view.layout.row_elements
    last = first + view.layout.row_elements - 1
    if word is not None:
        first = last = first + word // words
        inside = part.column <= first % all_columns < part.column + columns
    else:
        inside = True
    return inside and part.row <= last // all_columns and first // all_columns < part.row + rows
