"""The casebook: incidents as they come, which of them are open, and the state that follows.

Several checks may look at one place at a time. What a check saw before the place's last case was
opened or closed says nothing any more: one flip is one incident, whoever finds it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable

from weightguard.catalogue import Severity
from weightguard.finding import Finding
from weightguard.guard.deviations import Deviation
from weightguard.guard.gate import Gate
from weightguard.guard.incident import Incident
from weightguard.guard.ledger import Ledger, Place
from weightguard.guard.metrics import STATE, Metrics
from weightguard.guard.state import Event, State

MAX_INCIDENTS = 10_000
"""Incidents that are kept; older ones are dropped, and only counted."""
MAX_MOVED = 10_000
"""Places of which it is kept when their last case was opened or closed."""


class Casebook:
    """Takes down what was found, once each. Safe to share between threads."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float], gate: Gate):
        self._metrics, self._clock, self._gate = metrics, clock, gate
        self._moved: dict[Place, int] = {}
        self._lock = threading.Lock()
        self._ledger = Ledger()
        self._incidents: deque[Incident] = deque(maxlen=MAX_INCIDENTS)
        self._open: dict[int, Incident] = {}
        self.count = 0
        self._state, self._closed = State.SEALING, False
        self._show_state()

    def renew_lock(self) -> None:
        """After a fork: the thread that may have held the lock is not there any more."""
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        """The state that follows from all that happened."""
        return self._state

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The last MAX_INCIDENTS incidents, oldest first."""
        with self._lock:
            return tuple(self._incidents)

    @property
    def open(self) -> tuple[Incident, ...]:
        """The incidents whose deviations are not resolved, oldest first."""
        with self._lock:
            return tuple(self._open.values())

    def is_open(self, number: int) -> bool:
        """Return whether the deviation of incident ``number`` is not resolved."""
        with self._lock:
            return number in self._open

    def place(self, number: int) -> Place | None:
        """Return where an open incident's deviation is."""
        with self._lock:
            return next((p for p, n in self._ledger.places() if n == number), None)

    def knows(self, place: Place, mark: Hashable) -> bool:
        """Return whether this very deviation is taken down and open."""
        with self._lock:
            return self._ledger.knows(place, mark)

    def take(self, deviations: Iterable[Deviation], sound: Iterable[Place] = ()) -> list[Incident]:
        """Strike what is sound, and take down deviations that are not known; return the new."""
        with self._lock:
            for place in sound if len(self._ledger) else ():
                if not self._outdated(place):
                    self._strike(place)
            return [
                self._enter(deviation.finding, deviation)
                for deviation in deviations
                if not self._ledger.knows(deviation.place, deviation.mark)
                and not self._outdated(deviation.place)
            ]

    def note(self, found: Finding, cause: int | None = None) -> Incident:
        """Take down an incident that opens no deviation."""
        with self._lock:
            return self._enter(found, cause=cause)

    def resolve(self, place: Place) -> None:
        """Strike a deviation."""
        with self._lock:
            self._strike(place)

    def move(self, event: Event) -> None:
        """Let an event happen that does not follow from an incident."""
        with self._lock:
            self._after(event)

    def close(self) -> None:
        """Show no state any more: nobody watches."""
        with self._lock:
            self._closed = True
            self._show_state()

    def begin_again(self, kept: Collection[Place] = ()) -> None:
        """Strike everything but what ``kept`` places deviate in: the baseline is another one."""
        with self._lock:
            self._after(Event.SEALED)
            for place, _ in self._ledger.places():
                if place not in kept:
                    self._strike(place)
            if self._open:
                self._after(Event.OPENED)

    def _enter(
        self, found: Finding, deviation: Deviation | None = None, cause: int | None = None
    ) -> Incident:
        self.count += 1
        incident = Incident(self.count, self._clock(), found, cause)
        self._incidents.append(incident)
        if deviation is not None and found.level >= Severity.WARNING:
            former = self._ledger.close(deviation.place)
            self._open.pop(former or 0, None)
            self._ledger.open(deviation.place, deviation.mark, incident.number)
            self._open[incident.number] = incident
            self._move(deviation.place)
            self._after(Event.OPENED)
        return incident

    def _strike(self, place: Place) -> None:
        number = self._ledger.close(place)
        if number is not None:
            self._open.pop(number, None)
            self._move(place)
            if not len(self._ledger):
                self._after(Event.RESOLVED)

    def _move(self, place: Place) -> None:
        self._moved.pop(place, None)
        self._moved[place] = self._gate.turn()
        if len(self._moved) > MAX_MOVED:
            del self._moved[next(iter(self._moved))]

    def _outdated(self, place: Place) -> bool:
        """Return whether the calling thread's check began before the place's case moved."""
        since = self._gate.since
        return since is not None and since < self._moved.get(place, 0)

    def _after(self, event: Event) -> None:
        self._state = self._state.after(event)
        self._show_state()

    def _show_state(self) -> None:
        for state in State:
            shown = state is self._state and not self._closed
            self._metrics.set(STATE, float(shown), state.value)
