"""A guard's presence in a running server: called before forward passes, told of alarms, threads."""

from __future__ import annotations

from collections.abc import Callable

from weightguard.guard.adapter import Adapter, Attachable, Hearing, Witness
from weightguard.guard.background import Background


class Presence:
    """Attaches to an adapter's forward passes and keeps threads running, until it ends."""

    def __init__(self, adapter: Adapter, step: Callable[[], None], hear: Hearing):
        """``step`` is called before each forward pass, ``hear`` with what the runtime notices."""
        self._adapter, self._step, self._hear = adapter, step, hear
        self._detach: Callable[[], None] | None = None
        self._dismiss: Callable[[], None] | None = None
        self._threads: list[Background] = []
        self.ended = False

    def add(self, thread: Background) -> None:
        """Have a thread started with the others."""
        self._threads.append(thread)

    def begin(self) -> None:
        """Attach, as far as the runtime can be, and start the threads; again is nothing."""
        if self._detach is None and isinstance(self._adapter, Attachable):
            self._detach = self._adapter.attach(self._step)
        if self._dismiss is None and isinstance(self._adapter, Witness):
            self._dismiss = self._adapter.witness(self._hear)
        for thread in self._threads:
            thread.start()

    def begin_again(self) -> None:
        """After an update: listen to the tensors that there are now, if it listened at all."""
        if self._dismiss is not None and isinstance(self._adapter, Witness):
            self._dismiss()
            self._dismiss = self._adapter.witness(self._hear)

    def end(self) -> None:
        """Detach, and stop the threads for good."""
        self.ended = True
        for thread in self._threads:
            thread.stop()
        if self._detach is not None:
            self._detach()
            self._detach = None
        if self._dismiss is not None:
            self._dismiss()
            self._dismiss = None

    def after_fork(self) -> None:
        """In a forked child: start the threads that ran in the parent."""
        for thread in self._threads:
            if thread.lost and not self.ended:
                thread.start()
