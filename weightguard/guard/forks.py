"""Guards in forked processes: a fork copies memory and locks, but no thread."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Something that must be put in order in a forked child."""

    def after_fork(self) -> None:
        """Put it in order; called in the child, before anything else runs there."""
        ...


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()


def watch(guard: Forkable) -> None:
    """Call ``after_fork`` in every child, as long as the guard lives."""
    _watched.add(guard)


def _in_child() -> None:
    for guard in list(_watched):
        guard.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
