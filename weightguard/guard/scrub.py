"""Scrubbing: taking the next blocks, looking at them, and saying what deviates.

One scrubber serves every caller: forward passes with a budget of bytes, a background thread with
a rate, and a full check. They share the position, so that each adds to the same pass.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from dataclasses import dataclass

from weightguard.guard.adapter import Adapter, AdapterError, Token
from weightguard.guard.baseline import Baseline, Key
from weightguard.guard.check import Verdict, look
from weightguard.guard.deviations import (
    PRESENCE,
    READING,
    Deviation,
    appeared,
    corruption,
    record_damaged,
    unreadable,
    updated,
    vanished,
)
from weightguard.guard.glances import Glances
from weightguard.guard.identity import Identity
from weightguard.guard.ledger import Place
from weightguard.guard.mend import diagnose
from weightguard.guard.schedule import BlockRef, Random, Schedule
from weightguard.guard.sweep import Run, ask

LOGGER = logging.getLogger("weightguard.guard")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check of blocks came to.

    ``sound`` are places that hold their baseline, to be gone through once; ``nbytes`` and
    ``blocks`` what was verified.
    ``suspects`` changed so much at once as a write does that the runtime has yet to count: to be
    looked at again after ``Scrubber.wait``.
    """

    deviations: tuple[Deviation, ...] = ()
    sound: Iterable[Place] = ()
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
        self._glances = Glances(adapter)
        self._waiting = waiting
        self._lock = threading.Lock()
        self._appeared: Set[str] = frozenset()
        self.distant = baseline.distant
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
            return Outcome((unreadable(ref.tensor, error),))
        except Exception as error:
            LOGGER.exception("a live tensor could not be checked")
            return Outcome((unreadable(ref.tensor, error),))

    def glance(self, refs: Sequence[BlockRef]) -> tuple[Outcome, list[BlockRef]]:
        """Return what is sound at first sight, and the blocks that have to be looked at.

        Digests are computed one after the other, with nothing in between that a forward pass
        in another thread would have to wait for.
        """
        with self._lock:
            known = {ref.tensor: self._identities[ref.tensor].settled for ref in refs}
        glances = {name: self._glances.at(name, token) for name, token in known.items()}
        seen = [(ref, glance) for ref in refs if (glance := glances[ref.tensor]) is not None]
        parts = [glance.data[ref.start : ref.stop] for ref, glance in seen]
        tensors, digest = self.baseline.tensors, self._key.digest
        found = [digest(part) for part in parts]
        recorded = [tensors[ref.tensor].recorded(ref.block) for ref, _ in seen]
        held = {ref for (ref, _), is_, was in zip(seen, found, recorded, strict=True) if is_ == was}
        sound = (place for ref in held for place in _places(ref))
        outcome = Outcome(sound=sound, blocks=len(held), nbytes=sum(ref.nbytes for ref in held))
        return outcome, [ref for ref in refs if ref not in held]

    def ask(self, refs: list[BlockRef]) -> Run | None:
        """Ask a device for the sums of blocks; None for those that have to be looked at."""
        try:
            return ask(self._adapter, self.baseline, refs, self._key)
        except Exception:  # noqa: BLE001 - the look that follows says what is wrong
            return None

    def judge(self, run: Run) -> tuple[Outcome, list[BlockRef]]:
        """Return what a run's sums prove sound, and the blocks that have to be looked at."""
        try:
            moved = run.moved()
        except Exception:  # noqa: BLE001 - the look that follows says what is wrong
            return Outcome(), list(run.refs)
        sound = [self._sound(ref, run.token) for ref in run.refs if ref.block not in moved]
        outcome = Outcome(
            sound=tuple(place for one in sound for place in one.sound),
            blocks=len(sound),
            nbytes=sum(one.nbytes for one in sound),
        )
        return outcome, [ref for ref in run.refs if ref.block in moved]

    def _look(self, ref: BlockRef, *, patient: bool) -> Outcome:
        entry = self.baseline.tensors[ref.tensor]
        seen = look(self._adapter, entry, ref, self._key, self._waiting.brief)
        if seen.verdict is Verdict.VANISHED:
            return Outcome((vanished(ref.tensor, entry),))
        if seen.verdict is Verdict.IN_FLUX:
            return Outcome()
        assert seen.token is not None
        if seen.verdict is Verdict.SOUND:
            return self._sound(ref, seen.token)
        deviation = self._updated(ref, seen.token)
        if deviation is None and not self._known(Place(ref.tensor, ref.block), seen.digest):
            if not entry.sound(self._key):
                return Outcome((record_damaged(ref.tensor),))
            diagnosis = diagnose(entry, ref, seen.data, self._key)
            if diagnosis.cure is None and patient:
                return Outcome(suspects=(ref,))
            found = corruption(ref, diagnosis)
            deviation = Deviation(Place(ref.tensor, ref.block), seen.digest, found)
        return Outcome(() if deviation is None else (deviation,), (), 1, ref.nbytes)

    def _sound(self, ref: BlockRef, token: Token) -> Outcome:
        with self._lock:
            whole = self._identities[ref.tensor].verified(ref.block, token)
        sound = (*_places(ref), *[Place(ref.tensor)] * whole)
        return Outcome((), sound, 1, ref.nbytes)

    def _updated(self, ref: BlockRef, token: Token) -> Deviation | None:
        """Return what a change means of a tensor that the runtime knows was written, else None."""
        with self._lock:
            identity = self._identities[ref.tensor]
            identity.see(token)
            moves, writer = identity.moves, identity.writer
        if writer == "nobody":
            return None
        return updated(ref.tensor, writer, moves)

    def survey(self) -> Outcome:
        """Compare which tensors there are with those that were sealed, and note their tokens."""
        try:
            live = {tensor.name: tensor for tensor in self._adapter.tensors()}
        except Exception as error:
            LOGGER.exception("the live tensors could not be listed")
            return Outcome((unreadable("", error),))
        with self._lock:
            for name, tensor in live.items():
                if name in self._identities:
                    self._identities[name].see(tensor.token)
            gone = self._appeared - live.keys()
            self._appeared = live.keys() - self._identities.keys()
        deviations = [
            appeared(tensor) for name, tensor in live.items() if name not in self._identities
        ]
        deviations += [
            vanished(name, entry)
            for name, entry in self.baseline.tensors.items()
            if name not in live or live[name].kind != entry.tensor.kind
        ]
        deviating = {deviation.place for deviation in deviations}
        known = (*self.baseline.tensors, *gone)
        present = {Place(name, aspect=PRESENCE) for name in known} - deviating
        return Outcome(tuple(deviations), (*present, Place("", aspect=READING)))


def _places(ref: BlockRef) -> tuple[Place, Place]:
    """Return what is sound once a block was read and holds its baseline."""
    return Place(ref.tensor, ref.block), Place(ref.tensor, aspect=READING)
