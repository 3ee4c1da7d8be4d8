"""The guard: keeps a live model equal to its baseline, whatever runtime it lives in.

It joins the parts: sealing makes a baseline, rounds over its blocks find deviations, which become
incidents; a response follows each, and those that are open decide the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from weightguard.errors import IntegrityError, WeightguardError
from weightguard.finding import Finding, Report
from weightguard.guard import forks
from weightguard.guard.adapter import Adapter
from weightguard.guard.background import Background
from weightguard.guard.baseline import Baseline, Key
from weightguard.guard.casebook import Casebook
from weightguard.guard.coverage import LiveCoverage, gaps_of, live_coverage
from weightguard.guard.deviations import Deviation
from weightguard.guard.gate import Gate
from weightguard.guard.incident import Incident
from weightguard.guard.ledger import Place
from weightguard.guard.mend import Golden, Mender
from weightguard.guard.metrics import MemoryMetrics
from weightguard.guard.pins import Pins
from weightguard.guard.presence import Presence
from weightguard.guard.reactions import Reactions
from weightguard.guard.response import Response
from weightguard.guard.rounds import Rounds
from weightguard.guard.scrub import Scrubber, Waiting
from weightguard.guard.sealing import Sealing
from weightguard.guard.settings import Pinned, Settings, Status, Surroundings
from weightguard.guard.shares import Declared
from weightguard.guard.state import Event, State
from weightguard.guard.update import kept, what_changed
from weightguard.manifest import Manifest
from weightguard.scan.digest import BLOCK_BYTES


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
        if not isinstance(manifest, Manifest | None):
            kind = type(manifest).__name__
            raise WeightguardError(
                f"a {kind} is no Manifest: give an open one, Manifest.read(path)"
            )
        self.settings = settings or Settings()
        self._around = surroundings or Surroundings()
        self.adapter, self._key = adapter, Key()
        self.metrics = self.settings.metrics
        self._gate = Gate()
        self._casebook = Casebook(self.metrics, self._around.clock, self._gate)
        self._response = Response(
            Reactions(self.settings.on_incident, self.metrics),
            self._casebook,
            self._gate,
            Mender(adapter, self._key, golden),
            lambda place: self._rounds.find(place),  # noqa: PLW0108 - they are made below
            self.metrics,
        )
        self._pins, self._presence = Pins(adapter), Presence(adapter, self.step, self.hear)
        self._plan_scrubbing()
        self._sealing = Sealing(adapter, self._key, golden, self.settings, self._casebook, names)
        sealed = self._sealing.seal(manifest)
        self._rounds = Rounds(
            self._scrubber(sealed.baseline),
            self._gate,
            self._casebook,
            self._response.react,
            self.metrics,
            self._around.clock,
        )
        self._sealing.begin(sealed.baseline)
        forks.watch(self)
        self._response.react(self._sealing.incidents(sealed))

    # life

    def start(self) -> Self:
        """Attach to the forward pass and start the background thread, as far as there are any."""
        self._require_open()
        self._presence.begin()
        return self

    def _plan_scrubbing(self) -> None:
        """Have the blocks checked beside the forward passes, once the guard is started."""
        pace, random = self.settings.pace, self._around.random
        if pace is not None:
            act, period = lambda: self._rounds.beside(pace.slice), lambda: pace.period(random)
            self._presence.add(Background(act, period, "weightguard-scrub"))

    def close(self) -> None:
        """Stop guarding; what was found can still be asked for."""
        self._presence.end()
        self._casebook.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("a guard holds on to live memory and cannot be pickled: make a new one")

    def after_fork(self) -> None:
        """In a forked child: make locks anew that lost threads may hold, and start the thread.

        An update of a thread that is lost has failed here: what it changed is undeclared.
        """
        lost = self._gate.renew_lock()
        self._response.renew_lock()
        self._rounds.renew_lock()
        self._casebook.renew_lock()
        if isinstance(self.metrics, MemoryMetrics):
            self.metrics.renew_lock()
        if lost:
            self._give_up_update()
        self._presence.after_fork()

    @property
    def closed(self) -> bool:
        """Whether the guard was closed."""
        return self._presence.ended

    def _require_open(self) -> None:
        if self.closed:
            raise WeightguardError("this guard is closed: make a new one")

    # checking

    def step(self) -> None:
        """Check what one forward pass pays for; raises IntegrityError where a policy says so."""
        if self.closed:
            return
        for pin in self._pins.moved():
            self._rounds.of(*pin)
        if self.settings.step_bytes:
            self._rounds.step(self.settings.step_bytes)
        if raising := self._response.must_raise():
            raise IntegrityError(self.report(raising))

    def scrub(self, nbytes: int = BLOCK_BYTES, seconds: float | None = None) -> int:
        """Check the blocks that come next, and return how many bytes were verified.

        About ``nbytes``, and at most one pass. With ``seconds``, no block begins after that.
        """
        self._require_open()
        return self._rounds.some(nbytes, seconds)

    def check(self) -> Report:
        """Check every block now and report what is open. Incomplete during an update."""
        self._require_open()
        return self._rounds.report(self.settings.name, *self._rounds.all())

    def report(self, also: Iterable[Incident] = ()) -> Report:
        """Report what is open by now, without a check, and ``also`` incidents that were."""
        return self._rounds.report(self.settings.name, also=also)

    def pin(self, pins: Iterable[Pinned]) -> None:
        """Compare these bytes before every forward pass, as they are now. Raises AdapterError."""
        self._pins.hold(pins)

    # incidents

    def report_incident(self, place: Place, found: Finding) -> None:
        """Take down a deviation that somebody else found: a sentinel, or a canary."""
        self._response.react(self._casebook.take([Deviation(place, found.message, found)]))

    def report_sound(self, place: Place) -> None:
        """Take back what was reported of a place: it is sound again."""
        self._casebook.resolve(place)

    def note(self, found: Finding) -> None:
        """Take down an incident that opens no deviation."""
        self._response.react([self._casebook.note(found)])

    def hear(self, tensors: Sequence[str], findings: Sequence[Finding]) -> None:
        """Take down what the runtime noticed while it computed. See Witness.

        Where stored bytes explain it the tensors are checked: what is left of that is corruption.
        """
        if self.closed:
            return
        first = self._casebook.note(findings[0])
        causes = [self._casebook.note(found, first.number) for found in findings[1:]]
        self._response.react([first, *causes])
        for name in tensors if causes else ():
            entry = self.baseline.tensors.get(name)
            if entry is not None:
                self._rounds.of(name, 0, entry.tensor.nbytes)

    def repair(self, incident: Incident) -> None:
        """Put a corrupt block right, if its incident is open."""
        self._response.repair(incident)

    def quarantine(self) -> None:
        """Take the model out of service, until nothing is open or ``release`` is called."""
        self._response.quarantine()

    def release(self) -> None:
        """Put a quarantined model back into service though a deviation is open."""
        self._casebook.move(Event.RELEASED)

    # updates

    @contextmanager
    def update(
        self, manifest: Manifest | None = None, names: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """Declare a change of the live weights; they are sealed again when the block ends.

        Against ``manifest``; without one, what changed is trusted as it is found then. ``names``
        stay what they were unless they are given. Nothing is checked meanwhile. Where the block
        raises, the former baseline stays, and what was changed by then will be found as an
        undeclared update.
        """
        with self._updating(manifest, names):
            yield

    @contextmanager
    def _updating(
        self,
        manifest: Manifest | None,
        names: Mapping[str, str] | None,
        declare: Callable[[], Declared] | None = None,
    ) -> Iterator[None]:
        """Update; ``declare`` says, when the block ends, what live tensors are made up of."""
        self._require_open()
        with self._gate.closed():
            self._casebook.move(Event.UPDATING)
            try:
                yield
                incidents = self._seal_again(manifest, names, declare and declare())
            except BaseException:
                self._give_up_update()
                raise
        self._response.react(incidents)

    def _seal_again(
        self,
        manifest: Manifest | None,
        names: Mapping[str, str] | None,
        declared: Declared | None,
    ) -> list[Incident]:
        former = self.baseline
        sealed = self._sealing.seal(manifest, names, declared)
        if manifest is None:
            sealed = kept(former, sealed.baseline)
        baseline = sealed.baseline
        self._rounds.begin_again(self._scrubber(baseline))
        self._sealing.begin(baseline, former if manifest is None else None)
        self._pins.hold_again(baseline)
        self._presence.begin_again()
        told = self._casebook.note(what_changed(former, baseline))
        return [told, *self._sealing.incidents(sealed)]

    def _give_up_update(self) -> None:
        self._casebook.move(Event.OPENED if self._casebook.open else Event.SEALED)

    def _scrubber(self, baseline: Baseline) -> Scrubber:
        around, known = self._around, self._casebook.knows
        waiting = Waiting(around.sleep)
        return Scrubber(self.adapter, baseline, self._key, around.random, waiting, known)

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
        return self._rounds.scrubber.baseline

    @property
    def pinned(self) -> tuple[Pinned, ...]:
        """What is compared before every forward pass."""
        return self._pins.pinned

    @property
    def standing(self) -> str:
        """The state in a word, ``closed`` once the guard is: nobody knows about the weights."""
        return "closed" if self.closed else self.state.value

    @property
    def ready(self) -> bool:
        """Whether the model may take requests: watched, and neither sealing nor quarantined."""
        return self.state.ready and not self.closed

    def coverage(self) -> LiveCoverage:
        """Return how much of the live weights is watched, and what is not."""
        return live_coverage(self.baseline.attestations, gaps_of(self.adapter))

    def status(self) -> Status:
        """Return where the guard stands, for people and monitors."""
        scrubber, casebook = self._rounds.scrubber, self._casebook
        return Status(
            self.standing,
            self.ready,
            casebook.count,
            len(casebook.open),
            self._rounds.passes,
            self._rounds.last_full_pass,
            scrubber.schedule.nbytes,
            scrubber.baseline.nbytes,
            self.coverage(),
        )
