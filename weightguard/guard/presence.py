"""A guard's presence in a running server: a call before each forward pass, and its threads."""

from __future__ import annotations

from collections.abc import Callable

from weightguard.guard.adapter import Adapter, Attachable
from weightguard.guard.background import Background


class Presence:
    """Attaches to an adapter's forward passes and keeps threads running, until it ends."""

    def __init__(self, adapter: Adapter, step: Callable[[], None]):
        """``step`` is called before each forward pass."""
        self._adapter, self._step = adapter, step
        self._detach: Callable[[], None] | None = None
        self._threads: list[Background] = []
        self.ended = False

    def add(self, thread: Background) -> None:
        """Have a thread started with the others."""
        self._threads.append(thread)

    def begin(self) -> None:
        """Attach, as far as the runtime can be, and start the threads; again is nothing."""
        if self._detach is None and isinstance(self._adapter, Attachable):
            self._detach = self._adapter.attach(self._step)
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Detach, and stop the threads for good."""
        self.ended = True
        for thread in self._threads:
            thread.stop()
        if self._detach is not None:
            self._detach()
            self._detach = None

    def after_fork(self) -> None:
        """In a forked child: start the threads that ran in the parent."""
        for thread in self._threads:
            if thread.lost and not self.ended:
                thread.start()
