"""Steps of a calibration, reported to whoever shows them."""

from __future__ import annotations

from weightguard.progress import Progress


class Steps:
    """Counts forward passes against an estimate, which grows where it was too low."""

    def __init__(self, estimate: int, progress: Progress | None):
        self._estimate, self._progress = estimate, progress
        self._done = 0

    def advance(self) -> None:
        """Count one step as done."""
        self._done += 1
        self._report()

    def finish(self) -> None:
        """Say that nothing more is to come."""
        self._estimate = self._done
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._estimate))
