"""The guard: keeps a live model equal to its baseline, whatever runtime it lives in.

It joins the parts: what the scrubber finds becomes incidents, incidents run through reactions,
open ones decide the state. Checks come from three sides (forward passes, a background thread,
callers) and never overlap with a declared update. Reactions run where no lock is held, so a
callback may call the guard.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from weightguard.errors import IntegrityError, WeightguardError
from weightguard.finding import Coverage, Finding, Report, finding
from weightguard.guard import forks
from weightguard.guard.adapter import Adapter, Attachable, Gap, Incomplete, Witness
from weightguard.guard.background import Background
from weightguard.guard.baseline import Baseline, Key
from weightguard.guard.casebook import Casebook
from weightguard.guard.coverage import LiveCoverage, gap_findings, live_coverage
from weightguard.guard.gate import Gate
from weightguard.guard.incident import (
    CORRUPTION,
    DECLARED_UPDATE,
    REACTION_FAILED,
    Incident,
    report,
)
from weightguard.guard.ledger import Place
from weightguard.guard.mend import Golden, Mender
from weightguard.guard.metrics import (
    BLOCKS_VERIFIED,
    COVERAGE_RATIO,
    LAST_FULL_PASS,
    REPAIRS,
    SCRUB_BYTES,
    MemoryMetrics,
)
from weightguard.guard.reactions import Reactions
from weightguard.guard.schedule import BlockRef
from weightguard.guard.scrub import Deviation, Outcome, Scrubber, Waiting
from weightguard.guard.seal import Originals, Sealed, kept, refuse_stranger, seal
from weightguard.guard.settings import Pinned, Settings, Status, Surroundings
from weightguard.guard.state import Event, State
from weightguard.manifest import Manifest
from weightguard.scan.digest import BLOCK_BYTES

ATTESTATION = "attestation"
"""Aspect of a place: whether what was sealed is what the manifest holds."""
MAX_LISTED = 16
"""Names that one incident lists."""


class Guard:
    """Guards the live tensors of one adapter."""

    def __init__(
        self,
        adapter: Adapter,
        manifest: Manifest | None = None,
        settings: Settings | None = None,
        *,
        names: Mapping[str, str] | None = None,
        golden: Golden | None = None,
        surroundings: Surroundings | None = None,
    ):
        """Seal the live tensors, against ``manifest`` where there is one.

        ``names`` maps live tensors to the manifest's where they are called differently. Raises
        AdapterError when they cannot be read, and WeightguardError when no byte of them is the
        manifest's: it is that of another model.
        """
        self.settings = settings or Settings()
        self._around = surroundings or Surroundings()
        self.adapter, self._key = adapter, Key()
        self.metrics = self.settings.metrics
        self._reactions = Reactions(self.settings.on_incident, self.metrics)
        self._casebook = Casebook(self.metrics, self._around.clock)
        self._mender = Mender(adapter, self._key, golden)
        self._originals = golden if isinstance(golden, Originals) else None
        self._mending, self._gate = threading.Lock(), Gate()
        self._background = self._backgrounds()
        self._detach: Callable[[], None] | None = None
        self._dismiss: Callable[[], None] | None = None
        self._closed = False
        self._pins: dict[Pinned, bytes] = {}
        self._to_raise: tuple[int, ...] = ()
        self._known_gaps: tuple[Gap, ...] = ()
        self._last_full_pass: float | None = None
        sealed = self._seal(manifest, names)
        refuse_stranger(sealed.baseline, manifest)
        self._hold_to(sealed.baseline)
        forks.watch(self)
        self._react(self._first_incidents(sealed.findings))

    # life

    def start(self) -> Self:
        """Attach to the forward pass and start the background thread, as far as there are any."""
        self._require_open()
        if self._detach is None and isinstance(self.adapter, Attachable):
            self._detach = self.adapter.attach(self.step)
        self._call_witness()
        for thread in self._background:
            thread.start()
        return self

    def _call_witness(self) -> None:
        """Hear what the runtime notices itself, of the tensors that it has now."""
        if self._dismiss is not None:
            self._dismiss()
        if isinstance(self.adapter, Witness):
            self._dismiss = self.adapter.witness(self.hear)

    def _backgrounds(self) -> list[Background]:
        """Return what goes on beside the forward passes once the guard is started."""
        pace, random = self.settings.pace, self._around.random
        if pace is None:
            return []
        scrub = Background(
            lambda: self.scrub(pace.slice), lambda: pace.period(random), "weightguard-scrub"
        )
        return [scrub]

    def close(self) -> None:
        """Stop guarding; what was found can still be asked for."""
        self._closed = True
        for thread in self._background:
            thread.stop()
        if self._detach is not None:
            self._detach()
            self._detach = None
        if self._dismiss is not None:
            self._dismiss()
            self._dismiss = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("a guard holds on to live memory and cannot be pickled: make a new one")

    def after_fork(self) -> None:
        """In a forked child: make locks anew that lost threads may hold, and start the thread."""
        self._mending, self._gate = threading.Lock(), Gate()
        self._scrubber.renew_lock()
        self._casebook.renew_lock()
        if isinstance(self.metrics, MemoryMetrics):
            self.metrics.renew_lock()
        for thread in self._background:
            if thread.lost and not self._closed:
                thread.start()

    @property
    def closed(self) -> bool:
        """Whether the guard was closed."""
        return self._closed

    def _require_open(self) -> None:
        if self._closed:
            raise WeightguardError("this guard is closed: make a new one")

    # checking

    def step(self) -> None:
        """Check what one forward pass pays for; raises IntegrityError where a policy says so."""
        if self._closed:
            return
        self._check_pins()
        if self.settings.step_bytes:
            self.scrub(self.settings.step_bytes)
        if self._to_raise:
            self._raise()

    def scrub(self, nbytes: int = BLOCK_BYTES, seconds: float | None = None) -> int:
        """Check the blocks that come next, and return how many bytes were verified.

        About ``nbytes``, and at most one pass. With ``seconds``, no block begins after that.
        """
        self._require_open()
        scrubber = self._scrubber
        passes = scrubber.position.passes
        if scrubber.position.done == 0:
            self._settle(scrubber, scrubber.survey)
        blocks = scrubber.take(nbytes) if seconds is None else self._within(nbytes, seconds)
        _, verified = self._check_all(scrubber, blocks)
        if scrubber.position.passes > passes:
            self._full_pass()
        return verified

    def _within(self, nbytes: int, seconds: float) -> Iterator[BlockRef]:
        """Yield blocks one at a time, so that none counts as done that time did not suffice for."""
        ends = time.monotonic() + seconds
        for _ in range(self._scrubber.schedule.blocks):
            ref = self._scrubber.take_one()
            if ref is None:
                return
            yield ref
            nbytes -= ref.nbytes
            if nbytes <= 0 or time.monotonic() >= ends:
                return

    def check(self) -> Report:
        """Check every block now and report what is open. Incomplete during an update."""
        self._require_open()
        scrubber = self._scrubber
        self._settle(scrubber, scrubber.survey)
        blocks, nbytes = self._check_all(scrubber, scrubber.schedule)
        complete = blocks == scrubber.schedule.blocks
        if complete:
            self._full_pass()
        return self._report(nbytes, complete=complete)

    def _check_all(self, scrubber: Scrubber, refs: Iterable[BlockRef]) -> tuple[int, int]:
        """Check blocks; return how many were verified, and their bytes."""
        outcomes = [self._check(scrubber, ref, patient=True) for ref in refs]
        suspects = [ref for outcome in outcomes for ref in outcome.suspects]
        if suspects:
            scrubber.wait()
            outcomes += [self._check(scrubber, ref, patient=False) for ref in suspects]
        return sum(o.blocks for o in outcomes), sum(o.nbytes for o in outcomes)

    def _check(self, scrubber: Scrubber, ref: BlockRef, *, patient: bool) -> Outcome:
        outcome = self._settle(scrubber, lambda: scrubber.check(ref, patient=patient))
        if outcome.blocks:
            self.metrics.add(BLOCKS_VERIFIED, outcome.blocks)
            self.metrics.add(SCRUB_BYTES, outcome.nbytes)
        return outcome

    def _settle(self, scrubber: Scrubber, check: Callable[[], Outcome]) -> Outcome:
        """Check inside the gate, take down what was found, and react outside of it."""
        with self._gate.check() as let_in:
            # an update may have passed since the caller looked: its baseline is another one
            if not let_in or scrubber is not self._scrubber:
                return Outcome()
            outcome = check()
            incidents = self._casebook.take(outcome.deviations, outcome.sound)
        self._react(incidents)
        return outcome

    def _full_pass(self) -> None:
        self._last_full_pass = self._around.clock()
        self.metrics.set(LAST_FULL_PASS, self._last_full_pass)

    def pin(self, pins: Iterable[Pinned]) -> None:
        """Compare these bytes before every forward pass, as they are now. Raises AdapterError."""
        self._pins = {pin: bytes(self.adapter.read(*pin)) for pin in pins}

    def _check_pins(self) -> None:
        for pin, expected in self._pins.items():
            try:
                same = self.adapter.read(*pin) == expected
            except Exception:  # noqa: BLE001 - the check that follows says what is wrong
                same = False
            if not same:
                self._check_all(self._scrubber, self._scrubber.schedule.containing(*pin))

    # incidents and reactions

    def report_incident(self, place: Place, found: Finding) -> None:
        """Take down a deviation that somebody else found: a sentinel, or a canary."""
        self._react(self._casebook.take([Deviation(place, found.message, found)]))

    def hear(self, tensor: str, findings: Sequence[Finding]) -> None:
        """Take down what the runtime noticed while it computed, and check the tensor. See Witness.

        What explains it was changed in the tensor; what of that is left is corruption by digest.
        """
        if self._closed:
            return
        first = self._casebook.note(findings[0])
        self._react([first, *[self._casebook.note(f, first.number) for f in findings[1:]]])
        entry = self._scrubber.baseline.tensors.get(tensor)
        if entry is not None and findings[1:]:
            blocks = self._scrubber.schedule.containing(tensor, 0, entry.tensor.nbytes)
            self._check_all(self._scrubber, blocks)

    def report_sound(self, place: Place) -> None:
        """Take back what was reported of a place: it is sound again."""
        self._casebook.resolve(place)

    def repair(self, incident: Incident) -> None:
        """Put a corrupt block right, if its incident is open. See Subject."""
        if incident.code != CORRUPTION:
            return
        with self._gate.check() as let_in, self._mending:
            place, scrubber = self._casebook.place(incident.number), self._scrubber
            ref = place and scrubber.schedule.find(place.subject, place.block or 0)
            if not let_in or place is None or ref is None:
                return
            held, outcome = self._mender.attempt(scrubber.baseline.tensors[ref.tensor], ref)
            if held:
                self._casebook.resolve(place)
                self.metrics.add(REPAIRS)
        self._react([self._casebook.note(outcome, incident.number)])

    def is_open(self, incident: Incident) -> bool:
        """Return whether an incident's deviation is not resolved."""
        return self._casebook.is_open(incident.number)

    def quarantine(self) -> None:
        """Take the model out of service, until nothing is open or ``release`` is called."""
        self._casebook.move(Event.QUARANTINED)

    def release(self) -> None:
        """Put a quarantined model back into service though a deviation is open."""
        self._casebook.move(Event.RELEASED)

    def raise_next(self, incident: Incident) -> None:
        """Have forward passes raise as long as the incident is open. See Subject."""
        self._to_raise = (*self._to_raise, incident.number)

    def reaction_failed(self, name: str, incident: Incident, error: Exception) -> None:
        """Take note of a reaction that failed. See Subject."""
        message = f"{name} failed: {type(error).__name__}: {error}"[:500]
        self._react([self._casebook.note(finding(REACTION_FAILED, message), incident.number)])

    def _react(self, incidents: Iterable[Incident]) -> None:
        for incident in incidents:
            self._reactions.run(self, incident, time.monotonic())

    def _raise(self) -> None:
        self._to_raise = tuple(n for n in self._to_raise if self._casebook.is_open(n))
        if self._to_raise:
            raise IntegrityError(self._report(0, complete=False))

    # updates

    @contextmanager
    def update(
        self, manifest: Manifest | None = None, names: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """Declare a change of the live weights; they are sealed again when the block ends.

        Against ``manifest``; without one, what changed is trusted as it is found then. Nothing is
        checked meanwhile. Where the block raises, the former baseline stays, and what was
        changed by then will be found as an undeclared update.
        """
        self._require_open()
        with self._gate.closed():
            self._casebook.move(Event.UPDATING)
            try:
                yield
                incidents = self._seal_again(manifest, names)
                if self._dismiss is not None:
                    self._call_witness()
            except BaseException:
                self._casebook.move(Event.OPENED if self._casebook.open else Event.SEALED)
                raise
        self._react(incidents)

    def _seal_again(
        self, manifest: Manifest | None, names: Mapping[str, str] | None
    ) -> list[Incident]:
        former = self._scrubber.baseline
        sealed = self._seal(manifest, names)
        baseline, findings = sealed.baseline, sealed.findings
        if manifest is None:
            baseline, findings = kept(former, sealed.baseline)
        changed = former.changed(baseline)
        self._hold_to(baseline, () if manifest is not None else former.tensors.keys() - changed)
        sizes = dict(baseline.sizes)
        self.pin(pin for pin in self._pins if pin.stop <= sizes.get(pin.tensor, 0))
        message = f"{len(changed)} of {len(baseline.tensors)} live tensors changed"
        unaccounted = [name for name in changed if former.same_token(baseline, name)]
        evidence = {"tensors": changed[:MAX_LISTED], "unaccounted": unaccounted[:MAX_LISTED]}
        declared = finding(DECLARED_UPDATE, message, evidence=evidence)
        return [self._casebook.note(declared), *self._first_incidents(findings)]

    def _seal(self, manifest: Manifest | None, names: Mapping[str, str] | None) -> Sealed:
        told = self.settings
        return seal(
            self.adapter, self._key, manifest, names, told.threads, self._originals, told.pieces
        )

    def _hold_to(self, baseline: Baseline, unchanged: Collection[str] = ()) -> None:
        """Begin again with another baseline; ``unchanged`` tensors are attested no better by it."""
        former: Scrubber | None = getattr(self, "_scrubber", None)
        self._scrubber = Scrubber(
            self.adapter,
            baseline,
            self._key,
            self._around.random,
            Waiting(self._around.sleep),
            self._casebook.knows,
        )
        if former is not None:
            self._scrubber.resume(former)
        self._casebook.begin_again({Place(name, aspect=ATTESTATION) for name in unchanged})
        self.metrics.set(COVERAGE_RATIO, self.coverage().ratio)

    def _first_incidents(self, findings: Iterable[Finding]) -> list[Incident]:
        """Take down what sealing found: what differs from the manifest, and what is not guarded."""
        incidents = []
        gaps = tuple(self._gaps())
        news, self._known_gaps = gaps if gaps != self._known_gaps else (), gaps
        for found in (*findings, *gap_findings(news)):
            if found.rule.startswith("WG4"):
                place = Place(found.location.tensor or "", aspect=ATTESTATION)
                incidents += self._casebook.take([Deviation(place, found.rule, found)])
            else:
                incidents.append(self._casebook.note(found))
        return incidents

    # asking

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The last incidents, oldest first."""
        return self._casebook.incidents

    @property
    def state(self) -> State:
        """Where the guard stands."""
        return self._casebook.state

    @property
    def baseline(self) -> Baseline:
        """What the live tensors are held to."""
        return self._scrubber.baseline

    def coverage(self) -> LiveCoverage:
        """Return how much of the live weights is watched, and what is not."""
        entries = self._scrubber.baseline.tensors.values()
        sizes = ((entry.attestation, entry.tensor.nbytes) for entry in entries)
        return live_coverage(sizes, self._gaps())

    def status(self) -> Status:
        """Return where the guard stands, for people and monitors."""
        scrubber, casebook = self._scrubber, self._casebook
        return Status(
            casebook.state.value,
            casebook.state.ready,
            casebook.count,
            len(casebook.open),
            scrubber.position.passes,
            self._last_full_pass,
            scrubber.schedule.nbytes,
            scrubber.baseline.nbytes,
            self.coverage(),
        )

    def _gaps(self) -> Sequence[Gap]:
        return self.adapter.gaps() if isinstance(self.adapter, Incomplete) else ()

    def _report(self, nbytes: int, *, complete: bool) -> Report:
        schedule, tensors = self._scrubber.schedule, len(self._scrubber.baseline.tensors)
        checked = tensors if complete else 0
        coverage = Coverage(checked, tensors, nbytes, schedule.nbytes)
        return report(self.settings.name, self._casebook.open, coverage, complete=complete)
