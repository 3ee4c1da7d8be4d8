"""Open deviations: what was said already, so that it is said once, and what is not resolved."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple


class Place(NamedTuple):
    """What deviates: a block of a live tensor, or an aspect of a whole one, or of the model.

    ``aspect`` is "content" for the bytes, else "presence", "reading", "record" or "attestation".
    """

    subject: str
    block: int | None = None
    aspect: str = "content"


class _Entry(NamedTuple):
    number: int
    mark: Hashable


class Ledger:
    """Deviations that are open, by place. Not safe to share between threads without a lock."""

    def __init__(self) -> None:
        self._open: dict[Place, _Entry] = {}

    def knows(self, place: Place, mark: Hashable) -> bool:
        """Return whether this very deviation is open: ``mark`` tells it from others there."""
        entry = self._open.get(place)
        return entry is not None and entry.mark == mark

    def open(self, place: Place, mark: Hashable, number: int) -> None:
        """Take down that incident ``number`` opened a deviation."""
        self._open[place] = _Entry(number, mark)

    def close(self, place: Place) -> int | None:
        """Strike a deviation; return the number of its incident, None where there was none."""
        entry = self._open.pop(place, None)
        return None if entry is None else entry.number

    def places(self) -> list[tuple[Place, int]]:
        """Return what is open, with the numbers of the incidents."""
        return [(place, entry.number) for place, entry in self._open.items()]

    def __len__(self) -> int:
        return len(self._open)
