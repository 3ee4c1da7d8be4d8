"""Progress of long work, reported to whoever shows it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in total), never from two threads at once."""

REPORT_EVERY = 8 << 20


class Meter:
    """Counts bytes from several threads and passes them on in steps worth showing."""

    def __init__(self, total: int, progress: Progress | None):
        self._total = total
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0
        self._reported = 0

    def add(self, nbytes: int) -> None:
        """Count ``nbytes`` more bytes as done."""
        if self._progress is None:
            return
        with self._lock:
            self._done += nbytes
            if self._done - self._reported >= REPORT_EVERY or self._done == self._total:
                self._reported = self._done
                self._progress(self._done, self._total)
