"""onnxruntime's sessions in forked children: kept for good, since their end waits for lost threads.

A fork copies a session and none of its threads. Whatever would let go of it in the child, a
collection of garbage included, would wait for them for ever.
"""

from __future__ import annotations

import weakref
from typing import Any

from weightguard.guard import forks


class _Runtimes:
    """The runtime's sessions that live in this process."""

    def __init__(self) -> None:
        self._live: weakref.WeakSet[Any] = weakref.WeakSet()
        self._kept: list[Any] = []
        forks.watch(self)

    def add(self, runtime: Any) -> None:
        """Keep a session in children that are forked while it lives."""
        self._live.add(runtime)

    def after_fork(self) -> None:
        """In a forked child: keep what lives."""
        self._kept.extend(self._live)


RUNTIMES = _Runtimes()
