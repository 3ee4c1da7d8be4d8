"""The background thread of a guard: one slice after another, at the rate of a pace."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from weightguard.guard.schedule import Pace, Random

LOGGER = logging.getLogger("weightguard.guard")


class Background:
    """Calls ``scrub(nbytes)`` at a pace, in a daemon thread, until it is stopped."""

    def __init__(self, scrub: Callable[[int], object], pace: Pace, random: Random):
        self._scrub, self._pace, self._random = scrub, pace, random
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; nothing happens where it runs."""
        if not self.running:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name="weightguard-scrub", daemon=True
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
        while not stop.is_set():
            began = time.monotonic()
            try:
                self._scrub(self._pace.slice)
            except Exception:
                LOGGER.exception("a scrub failed; the next one follows")
            stop.wait(self._pace.pause(time.monotonic() - began, self._random))
