"""Putting damaged live blocks right, and proving it.

First from the residues, which need no second copy: one element in each row of a block. Then from
a golden copy. Whatever the bytes come from, their keyed digest is the baseline's before they are
written, and the block is read again afterwards.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from weightguard.finding import Finding, finding
from weightguard.guard.adapter import Adapter, AdapterError, Writable
from weightguard.guard.baseline import Key, TensorBaseline
from weightguard.guard.check import live_digest
from weightguard.guard.incident import REPAIRED, UNREPAIRABLE
from weightguard.guard.schedule import BlockRef
from weightguard.locate import ElementChange, WordChange, changed_elements, explain
from weightguard.tensor import TensorView

MAX_ROWS = 4096
"""Damaged rows of one block that are followed down to the element."""
MAX_WRITES = 3
"""Times that a block is written; memory that holds no right value after it is given up."""

Source: TypeAlias = Literal["residues", "golden copy", "other check"]
"""What a block was restored from; by another check, where two found the damage at once."""


class Golden(Protocol):
    """A trusted copy of what the live tensors were made from. It is verified, not believed."""

    def block(self, entry: TensorBaseline, ref: BlockRef) -> bytes | None:
        """Return what the live block should hold, None where the copy has nothing for it."""
        ...


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with a block: how many rows, and the elements where residues tell.

    ``cure`` are the words to put back, all proved together by the block's digest; None where the
    residues do not suffice.
    """

    rows: tuple[int, ...]
    elements: tuple[ElementChange, ...]
    cure: tuple[WordChange, ...] | None


@dataclass(frozen=True, slots=True)
class Mended:
    """A repair that held: where the bytes came from and how often they were written."""

    source: Source
    writes: int


class Unmendable(Exception):  # noqa: N818 - an outcome; the guard reports it
    """No repair held; the message says why."""


class _BlockSource:
    """The bytes of one block in the place they have in their tensor, zeros around them."""

    def __init__(self, start: int, data: bytes):
        self._start, self._data = start, data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        buffer[:] = bytes(len(buffer))
        first, last = max(offset, self._start), offset + len(buffer)
        inside = self._data[first - self._start : max(last - self._start, 0)]
        buffer[first - offset : first - offset + len(inside)] = inside


def diagnose(entry: TensorBaseline, ref: BlockRef, data: bytes, key: Key) -> Diagnosis:
    """Return what distinguishes ``data``, a block's bytes now, from its baseline."""
    deltas = entry.deltas(ref, np.frombuffer(data, np.uint8))
    rows = tuple(delta.row for delta in deltas)
    live = entry.tensor
    view = TensorView(
        live.name, live.dtype, live.shape, "", None, _BlockSource(ref.start, data)
    )  # fmt: skip
    digest = functools.partial(key.block_digest, live, ref.start)
    explained = [
        (words, confirmed)
        for words, confirmed in explain(view, deltas[:MAX_ROWS], entry.digests, digest)
        if all(ref.start <= word.offset < ref.stop for word in words)
    ]
    elements = tuple(
        ElementChange(e.row, e.index, e.old_bits, e.new_bits, e.width_bits, e.values, confirmed)
        for words, confirmed in explained
        for e in changed_elements(view, words)
    )
    cured = bool(explained) and all(confirmed for _, confirmed in explained)
    cure = tuple(word for words, _ in explained for word in words)
    return Diagnosis(rows, elements, cure if cured else None)


def _from(source: Source) -> str:
    return "by another check" if source == "other check" else f"from the {source}"


class Mender:
    """Repairs blocks of one adapter's tensors."""

    def __init__(self, adapter: Adapter, key: Key, golden: Golden | None):
        self._adapter, self._key, self._golden = adapter, key, golden

    def attempt(self, entry: TensorBaseline, ref: BlockRef) -> tuple[bool, Finding]:
        """Try to put a block right; return whether that held, and WG907 or WG908 that says so."""
        try:
            mended = self.mend(entry, ref)
        except (Unmendable, AdapterError) as error:
            return False, finding(UNREPAIRABLE, str(error), tensor=ref.tensor, block=ref.block)
        return True, finding(
            REPAIRED,
            f"restored {_from(mended.source)}, and verified",
            tensor=ref.tensor,
            block=ref.block,
            evidence={"source": mended.source, "writes": mended.writes},
        )

    def mend(self, entry: TensorBaseline, ref: BlockRef) -> Mended:
        """Put the block right; raises Unmendable, and AdapterError where memory is out of reach."""
        if not isinstance(self._adapter, Writable):
            raise Unmendable("this runtime's weights cannot be written while it runs")
        if not entry.sound(self._key):
            raise Unmendable("the guard's own record of the tensor is damaged")
        whole = bytes(self._adapter.read(ref.tensor, ref.start, ref.stop))
        if entry.holds(
            ref.block, self._key.block_digest(entry.tensor, ref.start, memoryview(whole))
        ):
            return Mended("other check", 0)
        diagnosis = diagnose(entry, ref, whole, self._key)
        if diagnosis.cure is not None:
            pieces = [(w.offset, w.old.to_bytes(w.width, "little")) for w in diagnosis.cure]
            writes = self._write(self._adapter, entry, ref, pieces)
            if writes:
                return Mended("residues", writes)
        pieces = [(ref.start, self._golden_block(entry, ref))]
        writes = self._write(self._adapter, entry, ref, pieces)
        if not writes:
            raise Unmendable(f"{MAX_WRITES} writes did not hold: the memory itself is faulty")
        return Mended("golden copy", writes)

    def _golden_block(self, entry: TensorBaseline, ref: BlockRef) -> bytes:
        why = "more than one element of a row changed, so the residues do not suffice"
        block = None if self._golden is None else self._golden.block(entry, ref)
        if block is None:
            raise Unmendable(f"{why}, and there is no golden copy of it")
        digest = self._key.block_digest(entry.tensor, ref.start, memoryview(block))
        if not entry.holds(ref.block, digest):
            raise Unmendable(f"{why}, and the golden copy is not what was sealed either")
        return block

    def _write(
        self,
        memory: Writable,
        entry: TensorBaseline,
        ref: BlockRef,
        pieces: list[tuple[int, bytes]],
    ) -> int:
        """Write and read back; return how many writes it took, 0 where none held."""
        for attempt in range(1, MAX_WRITES + 1):
            for start, data in pieces:
                memory.write(ref.tensor, start, data)
            if self._holds(entry, ref):
                return attempt
        return 0

    def _holds(self, entry: TensorBaseline, ref: BlockRef) -> bool:
        digest = live_digest(self._adapter, entry.tensor, ref, self._key)
        return entry.holds(ref.block, digest)
