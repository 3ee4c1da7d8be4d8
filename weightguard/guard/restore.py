"""What a live tensor that differs from what was attested should hold, and a proof of it.

A record's own bytes: the live tensor's sound blocks, and damaged ones with recorded residues put
right, or from a golden copy. The whole must have the record's cryptographic digest.

Bytes that were made of records, by casts, as pieces, as a rank's rows or columns: made again, all
of them, of originals in the golden copy that have their records' cryptographic digests.

Either is a baseline to repair the live tensor by. One block at a time is in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from weightguard.errors import CheckpointError
from weightguard.guard.adapter import Adapter
from weightguard.guard.baseline import BaselineBuilder, Key, TensorBaseline
from weightguard.guard.live import live_blocks, live_view
from weightguard.guard.mend import Golden
from weightguard.guard.originals import ChangedError, Proved, made_again
from weightguard.guard.schedule import BlockRef
from weightguard.locate import explained_blocks, restored_block
from weightguard.manifest import Manifest
from weightguard.repair.damage import find_damage
from weightguard.scan.digest import BLOCK_BYTES, tensor_hasher


@dataclass(frozen=True, slots=True)
class Restoration:
    """A proved baseline of what the tensor should hold, and the live blocks that do not."""

    entry: TensorBaseline
    blocks: tuple[BlockRef, ...]


def is_record(found: TensorBaseline, manifest: Manifest) -> bool:
    """Return whether a live tensor has a record of its own dtype and shape."""
    record = manifest.document.tensors.get(found.record or "")
    live = found.tensor
    return record is not None and (record.dtype, record.shape) == (live.dtype.name, live.shape)


def restoration(
    adapter: Adapter, found: TensorBaseline, manifest: Manifest, key: Key, golden: Golden | None
) -> Restoration | None:
    """Return what the record's live tensor should hold, None where that cannot be made.

    A tensor most of whose rows have changed is given up: these are other weights, fine-tuned ones
    say, and not damaged ones. For the same reason nothing of a tensor that is but one row is taken
    from the golden copy. Raises AdapterError.
    """
    view = replace(live_view(adapter, found.tensor), name=found.record or "")
    damage = find_damage([view], manifest, threads=1).get(manifest.numbers[view.name])
    if damage is None or _are_others(len(damage.rows), view.layout.rows):
        return None
    source = None if view.layout.rows == 1 else golden
    expected: NDArray[np.uint8] = manifest.sidecar.read(f"{damage.number}/blocks")
    explained = explained_blocks(view, damage.row_deltas())
    builder = BaselineBuilder(found.tensor, key)
    record, algorithm = manifest.document.tensors[view.name], manifest.document.digest_algorithm
    hasher = tensor_hasher(algorithm, record.dtype, record.shape)
    for block, live in enumerate(live_blocks(adapter, found.tensor)):
        data: NDArray[np.uint8] | None = live
        if block in damage.blocks:
            data = _array(restored_block(view, block, expected, explained.get(block, ())))
            if data is None and source is not None:
                data = _array(source.block(found, _ref(found, block)))
        if data is None or len(data) != len(live):
            return None
        builder.add(block, data)
        hasher.update(data.data)
    if f"{algorithm}:{hasher.hexdigest()}" != record.digest:
        return None
    entry = builder.finish("attested", "equal bytes", view.name)
    return Restoration(entry, tuple(_ref(found, block) for block in sorted(damage.blocks)))


def remade(adapter: Adapter, found: TensorBaseline, key: Key, proved: Proved) -> Restoration | None:
    """Return what a tensor made of records should hold, None where originals do not suffice.

    Tensors most of whose rows differ, and those of but one row, are given up. See ``restoration``.
    """
    tensor, damaged = found.tensor, list[BlockRef]()
    layout, builder = tensor.layout, BaselineBuilder(tensor, key)
    rows = np.zeros(layout.rows, bool)
    if layout.rows == 1:
        return None
    for block, live in enumerate(live_blocks(adapter, tensor)):
        ref = _ref(found, block)
        try:
            made = made_again(proved.origin, found, ref)
        except (CheckpointError, ChangedError):
            return None
        if made is None or len(made) != ref.nbytes:
            return None
        data = np.frombuffer(made, np.uint8)
        builder.add(block, data)
        moved = np.flatnonzero(data != live)
        if len(moved):
            damaged.append(ref)
            rows[(ref.start + moved) // layout.row_bytes] = True
    if _are_others(int(rows.sum()), layout.rows):
        return None
    how = "made again from attested originals in the golden copy"
    return Restoration(
        builder.finish("transformed", how, found.record, found.pieces), tuple(damaged)
    )


def _array(data: bytes | bytearray | None) -> NDArray[np.uint8] | None:
    return None if data is None else np.frombuffer(data, np.uint8)


def _are_others(changed: int, rows: int) -> bool:
    return 2 * changed > max(rows, 2)


def _ref(found: TensorBaseline, block: int) -> BlockRef:
    start = block * BLOCK_BYTES
    return BlockRef(found.tensor.name, block, start, min(start + BLOCK_BYTES, found.tensor.nbytes))
