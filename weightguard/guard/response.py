"""What follows an incident: the reactions of a policy, and what they do to model and state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

from weightguard.finding import finding
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.casebook import Casebook
from weightguard.guard.gate import Gate
from weightguard.guard.incident import CORRUPTION, REACTION_FAILED, Incident
from weightguard.guard.ledger import Place
from weightguard.guard.mend import Mender
from weightguard.guard.metrics import REPAIRS, Metrics
from weightguard.guard.reactions import Reactions
from weightguard.guard.schedule import BlockRef
from weightguard.guard.state import Event

Find: TypeAlias = Callable[[Place], tuple[TensorBaseline, BlockRef] | None]
"""Gives what a place's block is held to now, None where the baseline has it not."""


class Response:
    """Runs incidents through reactions, and does what they ask for. See reactions.Subject."""

    def __init__(
        self,
        reactions: Reactions,
        casebook: Casebook,
        gate: Gate,
        mender: Mender,
        find: Find,
        metrics: Metrics,
    ):
        self._reactions, self._casebook, self._gate = reactions, casebook, gate
        self._mender, self._find, self._metrics = mender, find, metrics
        self._mending = threading.Lock()
        self._raising = threading.Lock()
        self._to_raise: dict[int, Incident] = {}
        self._raised: set[int] = set()

    def renew_lock(self) -> None:
        """After a fork: the thread that may have held the lock is not there any more."""
        self._mending, self._raising = threading.Lock(), threading.Lock()

    def react(self, incidents: Iterable[Incident]) -> None:
        """Run each incident through all reactions."""
        for incident in incidents:
            self._reactions.run(self, incident, time.monotonic())

    def repair(self, incident: Incident) -> None:
        """Put a corrupt block right, if its incident is open. See Subject."""
        if incident.code != CORRUPTION:
            return
        with self._gate.check() as let_in, self._mending:
            place = self._casebook.place(incident.number)
            found = place and self._find(place)
            if not let_in or place is None or found is None:
                return
            held, outcome = self._mender.attempt(*found)
            if held:
                self._casebook.resolve(place)
                self._metrics.add(REPAIRS)
        self.react([self._casebook.note(outcome, incident.number)])

    def is_open(self, incident: Incident) -> bool:
        """Return whether an incident's deviation is not resolved. See Subject."""
        return self._casebook.is_open(incident.number)

    def quarantine(self) -> None:
        """Take the model out of service. See Subject."""
        self._casebook.move(Event.QUARANTINED)

    def raise_next(self, incident: Incident, *, certainly: bool) -> None:
        """Have forward passes raise as long as the incident is open. See Subject."""
        with self._raising:
            self._to_raise[incident.number] = incident
            if not certainly:
                self._raised.add(incident.number)  # as one that raised already: while it is open

    def must_raise(self) -> tuple[Incident, ...]:
        """Return the incidents that a forward pass must raise for now."""
        if not self._to_raise:
            return ()
        with self._raising:
            for number in self._raised & self._to_raise.keys():
                if not self._casebook.is_open(number):
                    del self._to_raise[number]
            self._raised = set(self._to_raise)
            return tuple(self._to_raise.values())

    def refused_for(self) -> tuple[Incident, ...]:
        """Return the open incidents that forward passes raise for, without counting as one."""
        with self._raising:
            return tuple(i for i in self._to_raise.values() if self.is_open(i))

    def reaction_failed(self, name: str, incident: Incident, error: BaseException) -> None:
        """Take note of a reaction that failed. See Subject."""
        message = f"{name} failed: {type(error).__name__}: {error}"[:500]
        self.react([self._casebook.note(finding(REACTION_FAILED, message), incident.number)])
