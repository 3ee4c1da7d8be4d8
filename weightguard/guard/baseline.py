"""The baseline: what the guard holds each live tensor to, small enough to keep in memory.

For each 1 MiB block a keyed digest, which a writer who does not know the process's secret cannot
meet on purpose, and the residues of the part of each row that lies in the block. So a block is
judged, and single elements of it restored, without any other. 16 bytes a block, and 16 a row
and block: 0.2 % of a matrix with rows of 8 KiB. In a device's memory the digest is over sums of
rows (``sums``), which take 24.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xxhash
from numpy.typing import NDArray

from weightguard.guard.adapter import LiveTensor
from weightguard.guard.coverage import Attestation
from weightguard.guard.pieces import Piece
from weightguard.guard.schedule import BlockRef
from weightguard.guard.sums import block_sums, part_counts
from weightguard.locate import RowDelta
from weightguard.scan.digest import BLOCK_BYTES, BLOCK_DIGEST_BYTES, block_count
from weightguard.scan.kernel import block_residues


class Key:
    """XXH3-128 under a secret of this process; never leaves it, and is not shown."""

    def __init__(self) -> None:
        self._seed = secrets.randbits(64)

    def digest(self, data: memoryview) -> bytes:
        """Return the 16-byte keyed digest of ``data``; releases the GIL."""
        return xxhash.xxh3_128_digest(data, self._seed)

    @functools.cached_property
    def secret(self) -> NDArray[np.uint64]:
        """A random number for each place that a word can have in a block, for ``sums``."""
        return np.frombuffer(secrets.token_bytes(8 * BLOCK_BYTES), np.uint64)

    def block_digest(self, tensor: LiveTensor, start: int, data: memoryview) -> bytes:
        """Return the keyed digest of a block, from byte ``start`` on, whose bytes are ``data``."""
        if not tensor.distant:
            return self.digest(data)
        words = np.frombuffer(data, np.uint8)
        sums = block_sums(tensor.dtype, tensor.layout, words, start, self.secret)
        return self.digest(sums.data.cast("B"))

    def __reduce__(self) -> str:
        raise TypeError("a guard's key does not leave its process")


@dataclass(frozen=True, slots=True)
class TensorBaseline:
    """What one live tensor is held to.

    ``digests``: keyed, uint8 (blocks, 16). ``residues``: uint64 (n, 2), of row parts in block
    order; those of block b are ``firsts[b]:firsts[b + 1]``. Of a distant tensor they are all sums,
    (n, 3). ``record`` names the manifest's tensor that it was compared with, None without one;
    ``how`` says in words what vouches for it.
    ``check`` is a keyed digest over both arrays.
    """

    tensor: LiveTensor
    attestation: Attestation
    how: str
    record: str | None
    digests: NDArray[np.uint8]
    residues: NDArray[np.uint64]
    firsts: NDArray[np.int64]
    check: bytes
    pieces: tuple[Piece, ...] = ()

    def holds(self, block: int, digest: bytes) -> bool:
        """Return whether ``digest`` is the one recorded for ``block``."""
        return self.recorded(block) == digest

    def recorded(self, block: int) -> bytes:
        """Return the digest recorded for ``block``."""
        recorded: bytes = self.digests[block].tobytes()
        return recorded

    def equals(self, other: TensorBaseline) -> bool:
        """Return whether both hold a tensor to the same content, type and shape."""
        return (self.tensor.dtype, self.tensor.shape, self.check) == (
            other.tensor.dtype,
            other.tensor.shape,
            other.check,
        )

    def vouched_like(self, other: TensorBaseline) -> TensorBaseline:
        """Return this baseline with what vouches for an equal one."""
        vouched = self.vouched(other.attestation, other.how)
        return replace(vouched, record=other.record, pieces=other.pieces)

    def vouched(self, attestation: Attestation, how: str) -> TensorBaseline:
        """Return this baseline with what vouches for it."""
        return replace(self, attestation=attestation, how=how)

    def sound(self, key: Key) -> bool:
        """Return whether the record itself is as it was made: memory holds it, too."""
        return _check(key, self.digests, self.residues) == self.check

    def deltas(self, ref: BlockRef, data: NDArray[np.uint8]) -> list[RowDelta]:
        """Return how the residues of ``data``, the bytes of a block now, moved, by row."""
        layout = self.tensor.layout
        observed = block_residues(self.tensor.dtype, layout, data, ref.start)
        expected = self.residues[self.firsts[ref.block] : self.firsts[ref.block + 1], :2]
        first_row = ref.start // layout.row_bytes
        moved = np.flatnonzero((observed != expected).any(axis=1))
        changes = observed[moved] - expected[moved]
        return [
            RowDelta(first_row + int(row), int(sum_), int(weighted))
            for row, (sum_, weighted) in zip(moved, changes, strict=True)
        ]


class BaselineBuilder:
    """Takes the blocks of one live tensor in order and ends with its baseline."""

    def __init__(self, tensor: LiveTensor, key: Key):
        self._tensor, self._key = tensor, key
        blocks = block_count(tensor.nbytes)
        counts = part_counts(tensor.layout, 0, tensor.nbytes)
        self._digests = np.zeros((blocks, BLOCK_DIGEST_BYTES), np.uint8)
        self._firsts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        columns = 3 if tensor.distant else 2
        self._residues = np.zeros((int(self._firsts[-1]), columns), np.uint64)

    def add(self, block: int, data: NDArray[np.uint8]) -> None:
        """Take in the bytes of one block."""
        live, start = self._tensor, block * BLOCK_BYTES
        if live.distant:
            sums = block_sums(live.dtype, live.layout, data, start, self._key.secret)
            self._take(block, sums, sums.data.cast("B"))
        else:
            self._take(block, block_residues(live.dtype, live.layout, data, start), data.data)

    def _take(self, block: int, parts: NDArray[np.uint64], digested: memoryview) -> None:
        self._parts(block)[:] = parts
        self._digests[block] = np.frombuffer(self._key.digest(digested), np.uint8)

    def add_sums(self, sums: NDArray[np.uint64]) -> None:
        """Take in the sums of all blocks of a distant tensor."""
        for block in range(len(self._digests)):
            parts = np.ascontiguousarray(sums[self._firsts[block] : self._firsts[block + 1]])
            self._take(block, parts, parts.data.cast("B"))

    def agrees(self, block: int, data: NDArray[np.uint8]) -> bool:
        """Return whether the bytes of a block have the residues that were taken in for it."""
        live = self._tensor
        residues = block_residues(live.dtype, live.layout, data, block * BLOCK_BYTES)
        return np.array_equal(self._parts(block)[:, :2], residues)

    def _parts(self, block: int) -> NDArray[np.uint64]:
        return self._residues[self._firsts[block] : self._firsts[block + 1]]

    def finish(
        self,
        attestation: Attestation,
        how: str,
        record: str | None,
        pieces: Sequence[Piece] = (),
    ) -> TensorBaseline:
        """Return the baseline, read-only from now on."""
        for array in (self._digests, self._residues, self._firsts):
            array.flags.writeable = False
        return TensorBaseline(
            self._tensor,
            attestation,
            how,
            record,
            self._digests,
            self._residues,
            self._firsts,
            _check(self._key, self._digests, self._residues),
            tuple(pieces),
        )


def _check(key: Key, digests: NDArray[np.uint8], residues: NDArray[np.uint64]) -> bytes:
    return key.digest(memoryview(key.digest(digests.data) + key.digest(residues.data)))


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a live model is held to, by tensor name."""

    tensors: dict[str, TensorBaseline]

    @classmethod
    def of(cls, tensors: Iterable[TensorBaseline]) -> Baseline:
        """Return the baseline of the given tensors."""
        return cls({entry.tensor.name: entry for entry in tensors})

    def changed(self, other: Baseline) -> list[str]:
        """Return the names of tensors that ``other`` lacks, adds, or holds to other content."""
        names = self.tensors.keys() | other.tensors.keys()
        both = self.tensors.keys() & other.tensors.keys()
        same = {name for name in both if self.tensors[name].equals(other.tensors[name])}
        return sorted(names - same)

    def same_token(self, other: Baseline, name: str) -> bool:
        """Return whether both know a tensor, and the runtime counted no write between them."""
        ours, theirs = self.tensors.get(name), other.tensors.get(name)
        return ours is not None and theirs is not None and ours.tensor.token == theirs.tensor.token

    @property
    def distant(self) -> bool:
        """Whether any tensor lies in a device's memory."""
        return any(entry.tensor.distant for entry in self.tensors.values())

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """Names and sizes in bytes, as a schedule takes them."""
        return [(name, entry.tensor.nbytes) for name, entry in self.tensors.items()]

    @property
    def attestations(self) -> list[tuple[Attestation, int]]:
        """What vouches for each tensor, and its size in bytes."""
        return [(entry.attestation, entry.tensor.nbytes) for entry in self.tensors.values()]

    @property
    def nbytes(self) -> int:
        """The memory that digests and residues take."""
        return sum(
            entry.digests.nbytes + entry.residues.nbytes + entry.firsts.nbytes
            for entry in self.tensors.values()
        )
