"""Healing block by block: residues, parity, golden copy. Only digests say what is healed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from weightguard.locate import explained_blocks, restored_block
from weightguard.manifest import Manifest
from weightguard.parity import Parity
from weightguard.repair.damage import Damage
from weightguard.repair.outcome import Shortfall
from weightguard.repair.target import Place, Target
from weightguard.scan.digest import BLOCK_BYTES, block_count, block_digest, tensor_hasher
from weightguard.tensor import TensorView

RESIDUES: Final = "residues"
PARITY: Final = "parity"
GOLDEN: Final = "golden copy"
SOURCES = (RESIDUES, PARITY, GOLDEN)


class BlockSource(Protocol):
    """Another copy of the same tensors."""

    def read(self, place: Place, start: int, stop: int) -> bytearray | None:
        """Return canonical bytes ``start:stop`` of a tensor, or None where it has none."""
        ...

    def judged(self, place: Place, *, right: bool) -> None:
        """Take note of whether what was read was what the manifest attests."""
        ...


class Healer:
    """Puts patches over a target's images, first a block at a time, then a tensor at a time.

    A block is taken when its digest is the manifest's, and then serves to restore others by
    parity. A tensor's patches stay only when its cryptographic digest is the manifest's.
    """

    def __init__(self, target: Target, manifest: Manifest, damages: Mapping[int, Damage]):
        self._target, self._manifest, self._damages = target, manifest, damages
        self._bad = {number: set(damage.blocks) for number, damage in damages.items()}

    def by_residues(self) -> None:
        """Undo one changed element in each damaged row."""
        for number, damage in self._damages.items():
            place = self._target.places.get(number)
            if place is None or not len(damage.rows):
                continue
            expected = self._expected(number)
            for block, rows in explained_blocks(place.view, damage.row_deltas()).items():
                if block in self._bad[number]:
                    data = restored_block(place.view, block, expected, rows)
                    if data is not None:
                        self._take(place, block, data, RESIDUES)

    def by_parity(self, parity: Parity) -> None:
        """Restore lost blocks whose groups have nothing else lost, until nothing moves."""
        rebuilder = _Rebuilder(parity, self._views(), self._manifest.views(), self._bad)
        moved = True
        while moved:
            moved = False
            for place, block in self._lost():
                start, stop = block_range(place.view, block)
                data = rebuilder.rebuild(place.number, start, stop)
                moved |= data is not None and self._offer(place, block, data, PARITY)

    def by_copy(self, copy: BlockSource) -> None:
        """Take what is still lost from another copy; nothing else is read of it."""
        for place, block in self._lost():
            data = copy.read(place, *block_range(place.view, block))
            if data is not None:
                copy.judged(place, right=self._offer(place, block, data, GOLDEN))

    @property
    def whole(self) -> bool:
        """Whether no block is lost any more."""
        return not any(self._bad.values())

    def settle(self) -> set[int]:
        """Take back the patches of every tensor whose digest is not restored; return the others.

        These are the numbers of the tensors that are healed.
        """
        healed = set()
        for number in self._damages:
            place = self._target.places.get(number)
            if place is None:
                continue
            if not self._bad[number] and self._is_attested(place):
                healed.add(number)
            else:
                place.image.drop(number)
        return healed

    def shortfall(self, parity: Parity) -> Shortfall | None:
        """Return how many blocks are lost, in how many groups; None where none is."""
        views = self._manifest.views()
        groups: set[int] = set()
        for number, bad in self._bad.items():
            for block in bad:
                start, stop = block_range(views[number], block)
                origin = parity.starts[number]
                pieces = parity.grouping.pieces(origin + start, origin + stop)
                groups.update(parity.grouping.group_of(piece[0]) for piece in pieces)
        lost = sum(map(len, self._bad.values()))
        return Shortfall(lost, len(groups)) if lost else None

    def _views(self) -> dict[int, TensorView]:
        placed = {number: place.view for number, place in self._target.places.items()}
        return {**placed, **self._target.readable}

    def _lost(self) -> Iterator[tuple[Place, int]]:
        for number in sorted(self._bad):
            place = self._target.places.get(number)
            if place is not None:
                yield from ((place, block) for block in sorted(self._bad[number]))

    def _expected(self, number: int) -> NDArray[np.uint8]:
        return self._manifest.sidecar.read(f"{number}/blocks")

    def _offer(self, place: Place, block: int, data: bytearray, source: str) -> bool:
        expected = self._manifest.sidecar.read(f"{place.number}/blocks", block, 1)
        if block_digest(memoryview(data)) != expected.tobytes():
            return False
        self._take(place, block, data, source)
        return True

    def _take(self, place: Place, block: int, data: bytearray, source: str) -> None:
        place.image.patch(place.start + block * BLOCK_BYTES, memoryview(data), place.number)
        self._bad[place.number].discard(block)
        self._damages[place.number].healed.setdefault(source, set()).add(block)

    def _is_attested(self, place: Place) -> bool:
        view = place.view
        algorithm = self._manifest.document.digest_algorithm
        hasher = tensor_hasher(algorithm, view.dtype.name, view.shape)
        for block in range(block_count(view.nbytes)):
            hasher.update(memoryview(view.read(*block_range(view, block))))
        return f"{algorithm}:{hasher.hexdigest()}" == place.record.digest


def block_range(view: TensorView, block: int) -> tuple[int, int]:
    """Return the first canonical byte of a block and where it ends."""
    return block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, view.nbytes)


class _Rebuilder:
    """Restores ranges of the stream from the other members of their groups."""

    def __init__(
        self,
        parity: Parity,
        views: Mapping[int, TensorView],
        recorded: Sequence[TensorView],
        bad: Mapping[int, set[int]],
    ):
        self._parity, self._views, self._bad = parity, views, bad
        self._sizes = [view.nbytes for view in recorded]
        self._order = parity.layout.order
        self._ends = np.cumsum([self._sizes[number] for number in self._order])

    def rebuild(self, number: int, start: int, stop: int) -> bytearray | None:
        """Return bytes ``start:stop`` of a tensor, or None where too much is lost beside them."""
        origin = self._parity.starts[number] + start
        pieces = [*self._parity.grouping.pieces(origin, origin + stop - start)]
        # asked of all before the first is read: much damage must not mean much reading
        if not all(self._is_sound(*other) for piece in pieces for other in self._others(*piece)):
            return None
        return bytearray(b"".join(self._piece(*piece) for piece in pieces))

    def _others(self, lost: int, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield start and length, in the stream, of the same columns of a group's other blocks."""
        grouping = self._parity.grouping
        for block in grouping.members(grouping.group_of(lost)):
            length = min(last, grouping.block_length(block)) - first
            if block != lost and length > 0:
                yield block * grouping.block_bytes + first, length

    def _piece(self, lost: int, first: int, last: int) -> bytes:
        total = self._parity.columns(self._parity.grouping.group_of(lost), first, last)
        for start, length in self._others(lost, first, last):
            data = bytearray(length)
            done = 0
            for number, offset, count in self._ranges(start, length):
                piece = memoryview(data)[done : done + count]
                self._views[number].source.read_into(offset, piece)
                done += count
            total[:length] ^= np.frombuffer(data, np.uint8)
        return total.tobytes()

    def _ranges(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (tensor, first byte, number of bytes) for a range of the stream."""
        index = int(np.searchsorted(self._ends, start, side="right"))
        end = start + length
        while start < end:
            number = self._order[index]
            offset = start - self._parity.starts[number]
            count = min(end - start, self._sizes[number] - offset)
            if count:
                yield number, offset, count
            start += count
            index += 1

    def _is_sound(self, start: int, length: int) -> bool:
        for number, offset, count in self._ranges(start, length):
            blocks = range(offset // BLOCK_BYTES, (offset + count - 1) // BLOCK_BYTES + 1)
            lost = self._bad.get(number, ())
            if number not in self._views or any(block in lost for block in blocks):
                return False
        return True
