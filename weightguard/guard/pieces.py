"""Declared pieces: a live tensor that is a concatenation of byte ranges of attested tensors.

Serving engines fuse q, k and v (or gate and up) into one matrix, and keep of each its own rank's
rows. What is checked, and what that proves:

- a piece that is a whole record: the cryptographic digest, so that every byte is the attested one;
- a part of a record: the residues of each row that it holds, which with certainty see every change
  of one or two words of a row, and XXH3-128 of each recorded block that lies in it whole, which
  sees all accidents but no adversary. Bytes outside whole rows are vouched for by neither, so a
  part that cuts a row is refused. Slices along columns are verified by all ranks together: shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from weightguard.errors import WeightguardError
from weightguard.guard.adapter import LiveTensor
from weightguard.manifest import Manifest, recorded_view
from weightguard.scan.digest import BLOCK_BYTES, tensor_hasher
from weightguard.scan.kernel import block_residues


class Piece(NamedTuple):
    """Canonical bytes ``start:stop`` of the attested tensor ``record``, a run.

    ``runs`` of them where it is not 1, each ``step`` bytes after the one before: a slice along
    columns has one for each row.
    """

    record: str
    start: int
    stop: int
    step: int = 0
    runs: int = 1

    @property
    def nbytes(self) -> int:
        """The number of bytes, of all runs."""
        return (self.stop - self.start) * self.runs

    def inside(self, nbytes: int, element: int) -> bool:
        """Return whether it lies in ``nbytes`` bytes, whole elements of ``element`` bytes, once."""
        run, last = self.stop - self.start, self.start + self.step * (self.runs - 1)
        apart = self.runs == 1 or self.step >= run
        whole = not (self.start % element or self.stop % element or self.step % element)
        return (
            self.runs > 0
            and 0 <= self.start <= self.stop
            and apart
            and whole
            and last + run <= nbytes
        )


def origins(pieces: Iterable[Piece], start: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """Yield of which bytes of which records bytes ``start:stop`` of a live tensor are made up."""
    at = 0
    for piece in pieces:
        first, last = max(start - at, 0), min(stop - at, piece.nbytes)
        while first < last:
            run = piece.stop - piece.start
            number, within = divmod(first, run)
            length = min(run - within, last - first)
            begin = piece.start + number * piece.step + within
            yield piece.record, begin, begin + length
            first += length
        at += piece.nbytes


def place_in(pieces: Iterable[Piece], record: str, offset: int) -> int | None:
    """Return where byte ``offset`` of a record lies in a live tensor, None where it does not."""
    at = 0
    for piece in pieces:
        number, within = 0, offset - piece.start
        if piece.runs > 1:
            number, within = divmod(within, piece.step)
        run = piece.stop - piece.start
        if piece.record == record and 0 <= number < piece.runs and 0 <= within < run:
            return at + number * run + within
        at += piece.nbytes
    return None


class Taker(Protocol):
    """Takes the bytes of something in order."""

    def update(self, data: NDArray[np.uint8]) -> None:
        """Take in the next bytes."""
        ...


class InTurn:
    """Takes the bytes of a live tensor in order and hands each piece's to its taker."""

    def __init__(self, tensor: LiveTensor, pieces: Sequence[Piece], takers: Sequence[Taker]):
        """Raise WeightguardError where the pieces cannot make up the tensor."""
        self._takers = takers
        self._ends = np.cumsum([piece.nbytes for piece in pieces]).tolist()
        if not pieces or self._ends[-1] != tensor.nbytes:
            raise WeightguardError(
                f"the pieces declared for {tensor.name[:200]!r} have {sum(self._ends[-1:])} bytes, "
                f"the live tensor {tensor.nbytes}: declare every piece, in order"
            )
        self._at, self._number = 0, 0

    def update(self, data: NDArray[np.uint8]) -> None:
        """Take in the next bytes."""
        while len(data):
            length = min(len(data), self._ends[self._number] - self._at)
            if length:
                self._takers[self._number].update(data[:length])
            self._at += length
            data = data[length:]
            if self._at == self._ends[self._number]:
                self._number += 1


class PieceResult(NamedTuple):
    """One piece read: whether it is the attested one, and the record's rows and blocks that not."""

    piece: Piece
    sound: bool
    whole: bool
    rows: tuple[int, ...]
    blocks: tuple[int, ...]


class PiecesReading(InTurn):
    """Takes the bytes of a live tensor in order, as its declared pieces one after the other."""

    def __init__(self, tensor: LiveTensor, pieces: Sequence[Piece], manifest: Manifest):
        """Raise WeightguardError where the pieces cannot make up the tensor."""
        self._checks = [_PieceCheck(tensor, piece, manifest) for piece in pieces]
        super().__init__(tensor, pieces, self._checks)

    def results(self) -> list[PieceResult]:
        """Return what each piece was found to be, once all bytes were taken in."""
        return [check.result() for check in self._checks]


class _PieceCheck:
    def __init__(self, tensor: LiveTensor, piece: Piece, manifest: Manifest):
        record = manifest.document.tensors.get(piece.record)
        if record is None:
            raise WeightguardError(f"no attested tensor is called {piece.record[:200]!r}")
        view = recorded_view(piece.record, record)
        self._piece, self._dtype, self._layout = piece, view.dtype, view.layout
        row = self._layout.row_bytes
        inside = 0 <= piece.start <= piece.stop <= view.nbytes and piece.runs == 1
        if view.dtype != tensor.dtype or not inside or piece.start % row or piece.stop % row:
            raise WeightguardError(
                f"{tensor.name[:200]!r} cannot hold bytes {piece.start}:{piece.stop} of "
                f"{piece.record[:200]!r}, {view.nbytes} bytes of {view.dtype.name}: pieces are "
                f"whole rows ({row} bytes) of the same dtype"
            )
        number = manifest.numbers[piece.record]
        self._first = piece.start // row
        self._expected: NDArray[np.uint64] = manifest.sidecar.read(
            f"{number}/residues", self._first, piece.stop // row - self._first
        )
        self._observed = np.zeros_like(self._expected)
        self._digests: NDArray[np.uint8] = manifest.sidecar.read(f"{number}/blocks")
        self._recorded = record.digest
        self._whole = (piece.start, piece.stop) == (0, view.nbytes)
        self._hasher = tensor_hasher(manifest.document.digest_algorithm, record.dtype, record.shape)
        self._nbytes, self._at = view.nbytes, piece.start
        self._block, self._damaged = xxhash.xxh3_128(), list[int]()

    def update(self, data: NDArray[np.uint8]) -> None:
        if self._whole:
            self._hasher.update(data.data)
        first = self._at // self._layout.row_bytes - self._first
        parts = block_residues(self._dtype, self._layout, data, self._at)
        self._observed[first : first + len(parts)] += parts
        while len(data):
            length = min(len(data), BLOCK_BYTES - self._at % BLOCK_BYTES)
            self._block.update(data[:length].data)
            self._at += length
            data = data[length:]
            if self._at % BLOCK_BYTES == 0 or self._at == self._nbytes:
                self._end_block()

    def _end_block(self) -> None:
        block = (self._at - 1) // BLOCK_BYTES
        # a block that began before the piece was not seen whole: only its rows vouch for it
        seen = block * BLOCK_BYTES >= self._piece.start
        if seen and self._block.digest() != self._digests[block].tobytes():
            self._damaged.append(block)
        self._block.reset()

    def result(self) -> PieceResult:
        rows = np.flatnonzero((self._observed != self._expected).any(axis=1)) + self._first
        sound = not len(rows) and not self._damaged
        if self._whole:
            name = self._recorded.partition(":")[2]
            sound = sound and self._hasher.hexdigest() == name
        return PieceResult(
            self._piece, sound, self._whole, tuple(rows.tolist()), tuple(self._damaged)
        )
