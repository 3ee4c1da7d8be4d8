"""A background thread of a guard: the same thing again and again, a period apart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

MAX_LAG = 0.1
"""Seconds that the thread may be behind its pace and still catch up."""

LOGGER = logging.getLogger("weightguard.guard")


class Background:
    """Calls ``act`` in a daemon thread, ``period()`` seconds from start to start, until stopped."""

    def __init__(self, act: Callable[[], object], period: Callable[[], float], name: str):
        self._act, self._period, self._name = act, period, name
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; nothing happens where it runs."""
        if not self.running:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name=self._name, daemon=True
            )
            self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread is alive; it is not in a forked child, until it is started again."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def lost(self) -> bool:
        """Whether a thread was started that is not alive any more: a fork does not copy it."""
        return self._thread is not None and not self._thread.is_alive()

    def stop(self) -> None:
        """Stop the thread and wait for it, unless it is the one that asks."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def _run(self, stop: threading.Event) -> None:
        due = time.monotonic()
        while not stop.is_set():
            try:
                self._act()
            except Exception:
                LOGGER.exception("%s failed; it goes on", self._name)
            # what a busy machine made late is caught up with, but never in one long run
            due = max(due + self._period(), time.monotonic() - MAX_LAG)
            stop.wait(max(due - time.monotonic(), 0))
