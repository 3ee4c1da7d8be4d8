"""The gate between checks and declared updates: many checks at once, or one update alone.

It numbers what passes, so that what a check saw can be told from what happened since it began.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Lets any number of checks in, until an update closes it and waits for them to leave."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed_by: int | None = None
        self._mine = threading.local()
        self._turns = itertools.count(1)

    def renew_lock(self) -> bool:
        """After a fork: only the calling thread is there, and what it is inside of.

        Returns whether an update is lost: another thread's, which nobody will end here.
        """
        self._changed = threading.Condition()
        self._inside = self._inside_here()
        if self._closed_by in (None, threading.get_ident()):
            return False
        self._closed_by = None
        return True

    def turn(self) -> int:
        """Return the next number: greater than those of all checks that began before."""
        return next(self._turns)

    @property
    def since(self) -> int | None:
        """The number that the calling thread's check began with, None outside of a check."""
        since: int | None = getattr(self._mine, "since", None)
        return since

    @contextmanager
    def check(self) -> Iterator[bool]:
        """Enter for a check; yields False while the gate is closed: then there is no check."""
        with self._changed:
            let_in = self._closed_by is None
            self._inside += let_in
        self._mine.inside = self._inside_here() + let_in
        outer, self._mine.since = self.since, self.turn()
        try:
            yield let_in
        finally:
            self._mine.inside -= let_in
            self._mine.since = outer
            with self._changed:
                self._inside -= let_in
                self._changed.notify_all()

    def _inside_here(self) -> int:
        """Return how often the calling thread is inside."""
        return int(getattr(self._mine, "inside", 0))

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close the gate, once all checks have left; another closer waits for this one.

        Raises RuntimeError where the thread would wait for itself: it has closed the gate already,
        or is inside of it.
        """
        me = threading.get_ident()
        with self._changed:
            if self._closed_by == me:
                raise RuntimeError("an update within an update: end the outer one first")
            if self._inside_here():
                raise RuntimeError("an update within a check: declare it when the check is over")
            self._changed.wait_for(lambda: self._closed_by is None)
            self._closed_by = me
            self._changed.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._changed:
                self._closed_by = None
                self._changed.notify_all()
