"""Where a guard stands: four states, and the events that lead from one to another.

    sealing      the baseline is being made; nothing is known about the weights yet
    healthy      every deviation that was found is resolved
    degraded     a deviation is open; the model still serves
    quarantined  the model should not serve

A table without input or output: the guard asks it, and a server's readiness follows from it.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Where a guard stands; the value is the word used in every output."""

    SEALING = "sealing"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    QUARANTINED = "quarantined"

    @property
    def ready(self) -> bool:
        """Whether the model may take requests."""
        return self in (State.HEALTHY, State.DEGRADED)

    def after(self, event: Event) -> State:
        """Return the state that follows ``event``, this one where the event changes nothing."""
        return TRANSITIONS.get((self, event), self)


class Event(enum.Enum):
    """What moves a guard from state to state.

    ``OPENED``: a deviation was found. ``RESOLVED``: none is open any more, because of verified
    repairs, or a declared update. ``QUARANTINED``: a policy or an operator took the model out of
    service. ``RELEASED``: an operator put it back though a deviation is open.
    ``UPDATING``: a declared update began. ``SEALED``: a baseline was made, and nothing deviates.
    """

    SEALED = "sealed"
    OPENED = "opened"
    RESOLVED = "resolved"
    QUARANTINED = "quarantined"
    RELEASED = "released"
    UPDATING = "updating"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.SEALING, Event.SEALED): State.HEALTHY,
    (State.SEALING, Event.OPENED): State.DEGRADED,
    (State.SEALING, Event.QUARANTINED): State.QUARANTINED,
    (State.HEALTHY, Event.OPENED): State.DEGRADED,
    (State.HEALTHY, Event.QUARANTINED): State.QUARANTINED,
    (State.HEALTHY, Event.UPDATING): State.SEALING,
    (State.DEGRADED, Event.RESOLVED): State.HEALTHY,
    (State.DEGRADED, Event.QUARANTINED): State.QUARANTINED,
    (State.DEGRADED, Event.UPDATING): State.SEALING,
    (State.QUARANTINED, Event.RESOLVED): State.HEALTHY,
    (State.QUARANTINED, Event.RELEASED): State.DEGRADED,
    (State.QUARANTINED, Event.UPDATING): State.SEALING,
}
"""Every pair of state and event that leads elsewhere."""
