"""The states: every pair of state and event, and what a long life may lead to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from weightguard.guard import Event, State
from weightguard.guard.state import TRANSITIONS

EVENTS = st.sampled_from(Event)


class Life(RuleBasedStateMachine):
    """A guard's life beside a model of it in plain words."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.SEALING
        self.sealing, self.open, self.withdrawn = True, False, False

    @rule(event=EVENTS)
    def happens(self, event: Event) -> None:
        self.state = self.state.after(event)
        if event is Event.UPDATING:
            self.sealing, self.open, self.withdrawn = True, False, False
        elif event is Event.SEALED:
            self.sealing = False if not self.withdrawn else self.sealing
        elif event is Event.OPENED:
            self.open, self.sealing = True, False
        elif event is Event.RESOLVED and not self.sealing:
            self.open = self.withdrawn = False
        elif event is Event.QUARANTINED:
            self.withdrawn, self.sealing, self.open = True, False, True
        elif event is Event.RELEASED:
            self.withdrawn = False

    @invariant()
    def agrees(self) -> None:
        expected = (
            State.SEALING if self.sealing
            else State.QUARANTINED if self.withdrawn
            else State.DEGRADED if self.open
            else State.HEALTHY
        )  # fmt: skip
        assert self.state is expected


TestLife = Life.TestCase


@given(st.lists(EVENTS))
def test_few_events_make_a_model_ready(
    events: list[Event],
) -> None:
    state = State.SEALING
    for event in events:
        before, state = state, state.after(event)
        if state.ready and not before.ready:
            assert event in (Event.SEALED, Event.RESOLVED, Event.RELEASED, Event.OPENED)
            assert event is not Event.OPENED or before is State.SEALING


def test_every_transition_leads_elsewhere() -> None:
    assert all(state is not after for (state, _), after in TRANSITIONS.items())


def test_every_state_is_reached() -> None:
    assert {State.SEALING, *TRANSITIONS.values()} == set(State)
