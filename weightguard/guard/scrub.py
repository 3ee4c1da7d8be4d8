"""Scrubbing: taking the next blocks, looking at them, and saying what deviates.

One scrubber serves every caller: forward passes with a budget of bytes, a background thread with
a rate, and a full check. They share the position, so that each adds to the same pass.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Set
from dataclasses import dataclass

from weightguard.finding import Finding, finding
from weightguard.guard.adapter import Adapter, AdapterError, LiveTensor, Token
from weightguard.guard.baseline import Baseline, Key, TensorBaseline
from weightguard.guard.check import Verdict, look
from weightguard.guard.identity import Identity
from weightguard.guard.incident import (
    ADAPTER_SWAPPED,
    BASELINE_DAMAGED,
    CORRUPTION,
    TENSOR_APPEARED,
    TENSOR_VANISHED,
    UNDECLARED_UPDATE,
    UNREADABLE,
)
from weightguard.guard.ledger import Place
from weightguard.guard.mend import Diagnosis, diagnose
from weightguard.guard.schedule import BlockRef, Random, Schedule
from weightguard.rules.equality import describe

MAX_LISTED = 16
"""Rows and elements that one incident lists."""
MAX_MESSAGE = 500
"""Characters of a message that somebody else wrote."""
READING, PRESENCE = "reading", "presence"
"""Aspects of a place: whether a tensor can be read, and whether it is there."""

LOGGER = logging.getLogger("weightguard.guard")


@dataclass(frozen=True, slots=True)
class Deviation:
    """What deviates, where, and ``mark``, which tells it from another deviation there."""

    place: Place
    mark: Hashable
    finding: Finding


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check of blocks came to.

    ``sound`` are places that hold their baseline; ``nbytes`` and ``blocks`` what was verified.
    ``suspects`` changed so much at once as a write does that the runtime has yet to count: to be
    looked at again after ``Scrubber.wait``.
    """

    deviations: tuple[Deviation, ...] = ()
    sound: tuple[Place, ...] = ()
    blocks: int = 0
    nbytes: int = 0
    suspects: tuple[BlockRef, ...] = ()


class Waiting:
    """How long a mismatch is given to turn out as a write that is under way.

    ``brief`` between two readings of any mismatch; ``long`` before damage that is more than one
    element a row is called corruption, as a runtime counts a write when it is done.
    """

    def __init__(self, sleep: Callable[[float], None], brief: float = 0.005, long: float = 0.25):
        self._sleep, self._brief, self._long = sleep, brief, long

    def brief(self) -> None:
        """Wait between two readings."""
        self._sleep(self._brief)

    def long(self) -> None:
        """Wait for a large write to end."""
        self._sleep(self._long)


class Scrubber:
    """Checks the live tensors of one baseline. Safe to share between threads."""

    def __init__(
        self,
        adapter: Adapter,
        baseline: Baseline,
        key: Key,
        random: Random,
        waiting: Waiting,
        known: Callable[[Place, Hashable], bool],
    ):
        """``known`` says whether a deviation, by place and mark, was taken down already."""
        self._known = known
        self._adapter, self.baseline, self._key = adapter, baseline, key
        self._waiting = waiting
        self._lock = threading.Lock()
        self._appeared: Set[str] = frozenset()
        self.schedule = Schedule(baseline.sizes)
        self.position = self.schedule.begin(random)
        self._identities = {
            name: Identity(entry.tensor.token, len(entry.digests))
            for name, entry in baseline.tensors.items()
        }

    def resume(self, former: Scrubber) -> None:
        """Go on where another scrubber of the same model stopped."""
        self.position = self.schedule.resume(former.position, former.schedule)

    def take(self, budget: int) -> tuple[BlockRef, ...]:
        """Return the blocks that come next, and count them as done."""
        with self._lock:
            self.position, blocks = self.schedule.take(self.position, budget)
        return blocks

    def take_one(self) -> BlockRef | None:
        """Return the block that comes next, and count it as done; None where there are none."""
        with self._lock:
            if not self.schedule.blocks:
                return None
            self.position, block = self.schedule.following(self.position)
        return block

    def renew_lock(self) -> None:
        """After a fork: the thread that may have held the lock is not there any more."""
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Give a write that is under way time to end."""
        self._waiting.long()

    def check(self, ref: BlockRef, *, patient: bool = True) -> Outcome:
        """Look at one block and judge it; with patience, great damage is but suspected."""
        try:
            return self._look(ref, patient=patient)
        except AdapterError as error:
            return Outcome((_unreadable(ref.tensor, error),))
        except Exception as error:
            LOGGER.exception("a live tensor could not be checked")
            return Outcome((_unreadable(ref.tensor, error),))

    def _look(self, ref: BlockRef, *, patient: bool) -> Outcome:
        entry = self.baseline.tensors[ref.tensor]
        seen = look(self._adapter, entry, ref, self._key, self._waiting.brief)
        if seen.verdict is Verdict.VANISHED:
            return Outcome((_vanished(ref.tensor, entry),))
        if seen.verdict is Verdict.IN_FLUX:
            return Outcome()
        assert seen.token is not None
        if seen.verdict is Verdict.SOUND:
            return self._sound(ref, seen.token)
        deviation = self._updated(ref, seen.token)
        if deviation is None and not self._known(Place(ref.tensor, ref.block), seen.digest):
            if not entry.sound(self._key):
                return Outcome((_record_damaged(ref.tensor),))
            diagnosis = diagnose(entry, ref, seen.data, self._key)
            if diagnosis.cure is None and patient:
                return Outcome(suspects=(ref,))
            found = corruption(ref, diagnosis)
            deviation = Deviation(Place(ref.tensor, ref.block), seen.digest, found)
        return Outcome(() if deviation is None else (deviation,), (), 1, ref.nbytes)

    def _sound(self, ref: BlockRef, token: Token) -> Outcome:
        with self._lock:
            whole = self._identities[ref.tensor].verified(ref.block, token)
        sound = [Place(ref.tensor, ref.block), Place(ref.tensor, aspect=READING)]
        return Outcome((), (*sound, *[Place(ref.tensor)] * whole), 1, ref.nbytes)

    def _updated(self, ref: BlockRef, token: Token) -> Deviation | None:
        """Return what a change means of a tensor that the runtime knows was written, else None."""
        with self._lock:
            identity = self._identities[ref.tensor]
            identity.see(token)
            moves, writer = identity.moves, identity.writer
        if writer == "nobody":
            return None
        code = ADAPTER_SWAPPED if writer == "adapter" else UNDECLARED_UPDATE
        how = ", ".join(moves) or "it was written and put back"
        message = f"its bytes are others than were sealed: {how}"
        found = finding(code, message, tensor=ref.tensor, evidence={"moved": list(moves)})
        return Deviation(Place(ref.tensor), code, found)

    def survey(self) -> Outcome:
        """Compare which tensors there are with those that were sealed, and note their tokens."""
        try:
            live = {tensor.name: tensor for tensor in self._adapter.tensors()}
        except Exception as error:
            LOGGER.exception("the live tensors could not be listed")
            return Outcome((_unreadable("", error),))
        with self._lock:
            for name, tensor in live.items():
                if name in self._identities:
                    self._identities[name].see(tensor.token)
            gone = self._appeared - live.keys()
            self._appeared = live.keys() - self._identities.keys()
        deviations = [
            _appeared(tensor) for name, tensor in live.items() if name not in self._identities
        ]
        deviations += [
            _vanished(name, entry)
            for name, entry in self.baseline.tensors.items()
            if name not in live or not _same_type(live[name], entry.tensor)
        ]
        deviating = {deviation.place for deviation in deviations}
        known = (*self.baseline.tensors, *gone)
        present = {Place(name, aspect=PRESENCE) for name in known} - deviating
        return Outcome(tuple(deviations), (*present, Place("", aspect=READING)))


def corruption(ref: BlockRef, diagnosis: Diagnosis) -> Finding:
    """Return WG901 for a block, as precise as its residues allow."""
    elements = diagnosis.elements
    first = elements[0] if elements else None
    return finding(
        CORRUPTION,
        _damage(diagnosis),
        tensor=ref.tensor,
        block=ref.block,
        row=diagnosis.rows[0] if diagnosis.rows else None,
        element=None if first is None else first.index,
        evidence={
            "row_count": len(diagnosis.rows),
            "rows": list(diagnosis.rows[:MAX_LISTED]),
            "elements": [
                {
                    "index": list(element.index),
                    "old_bits": f"{element.old_bits:#x}",
                    "new_bits": f"{element.new_bits:#x}",
                    "flipped_bits": list(element.flipped),
                    "confirmed": element.confirmed,
                }
                for element in elements[:MAX_LISTED]
            ],
        },
    )


def _damage(diagnosis: Diagnosis) -> str:
    rows, elements = len(diagnosis.rows), diagnosis.elements
    if not rows:
        return "changed in a way that its residues do not show: more than two words of a row"
    where = f"{rows} row{'' if rows == 1 else 's'} changed"
    if not elements:
        return f"{where}, by more than one element each"
    certainty = "" if diagnosis.cure is not None else "consistent with "
    more = f" and {len(elements) - 1} more" if len(elements) > 1 else ""
    return f"{where}: {certainty}{describe(elements[0])}{more}"


def _same_type(a: LiveTensor, b: LiveTensor) -> bool:
    return a.kind == b.kind


def _vanished(name: str, entry: TensorBaseline) -> Deviation:
    was = f"{entry.tensor.dtype.name} {list(entry.tensor.shape)}"
    message = f"the sealed {was} is gone from the live model, or has another type or shape"
    return Deviation(
        Place(name, aspect=PRESENCE),
        TENSOR_VANISHED,
        finding(TENSOR_VANISHED, message, tensor=name),
    )


def _appeared(tensor: LiveTensor) -> Deviation:
    message = f"{tensor.dtype.name} {list(tensor.shape)} was not there when the model was sealed"
    return Deviation(
        Place(tensor.name, aspect=PRESENCE),
        (TENSOR_APPEARED, tensor.dtype.name, tensor.shape),
        finding(TENSOR_APPEARED, message, tensor=tensor.name),
    )


def _unreadable(name: str, error: Exception) -> Deviation:
    known = isinstance(error, AdapterError)
    message = str(error) if known else f"reading failed: {type(error).__name__}: {error}"
    return Deviation(
        Place(name, aspect=READING),
        UNREADABLE,
        finding(UNREADABLE, message[:MAX_MESSAGE], tensor=name or None),
    )


def _record_damaged(name: str) -> Deviation:
    message = "the guard's digests and residues of it are not those that were made"
    return Deviation(
        Place(name, aspect="record"),
        BASELINE_DAMAGED,
        finding(BASELINE_DAMAGED, message, tensor=name),
    )
