"""What a live tensor that differs from its record should hold, though nothing vouches for it.

Its sound blocks, and damaged ones with recorded residues put right, or from a golden copy. The
whole must have the record's cryptographic digest: then it is the attested tensor, and a baseline
to repair the live one by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from weightguard.guard.adapter import Adapter
from weightguard.guard.baseline import BaselineBuilder, Key, TensorBaseline
from weightguard.guard.live import live_blocks, live_view
from weightguard.guard.mend import Golden
from weightguard.guard.schedule import BlockRef
from weightguard.locate import explained_blocks, restored_block
from weightguard.manifest import Manifest
from weightguard.repair.damage import Damage, find_damage
from weightguard.scan.digest import BLOCK_BYTES, tensor_hasher
from weightguard.tensor import TensorView


@dataclass(frozen=True, slots=True)
class Restoration:
    """A proved baseline of the attested tensor, and the live blocks that do not hold it."""

    entry: TensorBaseline
    blocks: tuple[BlockRef, ...]


def restoration(
    adapter: Adapter, found: TensorBaseline, manifest: Manifest, key: Key, golden: Golden | None
) -> Restoration | None:
    """Return what the tensor sealed as ``found`` should hold, None where that cannot be made.

    A tensor most of whose rows have changed is given up: these are other weights, fine-tuned ones
    say, and not damaged ones. For the same reason nothing of a tensor that is but one row is taken
    from the golden copy. Raises AdapterError.
    """
    view = _as_recorded(adapter, found, manifest)
    if view is None:
        return None
    damage = find_damage([view], manifest, threads=1).get(manifest.numbers[view.name])
    if damage is None:
        return None
    rows = view.layout.rows
    if 2 * len(damage.rows) > max(rows, 2):
        return None
    refs = [_ref(found, block) for block in sorted(damage.blocks)]
    blocks = _restored(view, damage, manifest)
    for ref in refs:
        if rows > 1 and golden is not None and ref.block not in blocks:
            blocks[ref.block] = golden.block(found, ref)
    if any(blocks.get(ref.block) is None for ref in refs):
        return None
    entry = _proved(adapter, found, manifest, key, blocks)
    return None if entry is None else Restoration(entry, tuple(refs))


def _as_recorded(adapter: Adapter, found: TensorBaseline, manifest: Manifest) -> TensorView | None:
    """Return the live tensor as its record's, None where it is none or has another type."""
    record = manifest.document.tensors.get(found.record or "")
    view = live_view(adapter, found.tensor)
    if record is None or (record.dtype, record.shape) != (view.dtype.name, view.shape):
        return None
    return replace(view, name=found.record or "")


def _ref(found: TensorBaseline, block: int) -> BlockRef:
    start = block * BLOCK_BYTES
    return BlockRef(found.tensor.name, block, start, min(start + BLOCK_BYTES, found.tensor.nbytes))


def _restored(view: TensorView, damage: Damage, manifest: Manifest) -> dict[int, bytes | None]:
    """Return the blocks that recorded residues put right: one element in each row."""
    expected: NDArray[np.uint8] = manifest.sidecar.read(f"{damage.number}/blocks")
    explained = explained_blocks(view, damage.row_deltas())
    restored = {
        block: restored_block(view, block, expected, rows) for block, rows in explained.items()
    }
    return {block: bytes(data) for block, data in restored.items() if data is not None}


def _proved(
    adapter: Adapter,
    found: TensorBaseline,
    manifest: Manifest,
    key: Key,
    blocks: Mapping[int, bytes | None],
) -> TensorBaseline | None:
    """Return the baseline of the live tensor with ``blocks`` in place, None if it is not proved."""
    tensor, name = found.tensor, found.record or ""
    record, algorithm = manifest.document.tensors[name], manifest.document.digest_algorithm
    hasher, builder = (
        tensor_hasher(algorithm, record.dtype, record.shape),
        BaselineBuilder(tensor, key),
    )
    for block, live in enumerate(live_blocks(adapter, tensor)):
        other = blocks.get(block)
        data = live if other is None else np.frombuffer(other, np.uint8)
        if len(data) != len(live):
            return None
        builder.add(block, data)
        hasher.update(data.data)
    if f"{algorithm}:{hasher.hexdigest()}" != record.digest:
        return None
    return builder.finish("attested", "equal bytes", name)
