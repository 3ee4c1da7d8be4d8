"""What a guard counts, under the names that a monitoring system shows."""

from __future__ import annotations

import threading
from typing import Protocol

BLOCKS_VERIFIED = "weightguard_blocks_verified_total"
MISMATCHES = "weightguard_mismatches_total"
LAST_FULL_PASS = "weightguard_last_full_pass_timestamp_seconds"  # noqa: S105 - no password
SCRUB_BYTES = "weightguard_scrub_bytes_total"
COVERAGE_RATIO = "weightguard_coverage_ratio"
STATE = "weightguard_state"
REPAIRS = "weightguard_repairs_total"

NAMES = (
    BLOCKS_VERIFIED, MISMATCHES, LAST_FULL_PASS, SCRUB_BYTES, COVERAGE_RATIO, STATE, REPAIRS,
)  # fmt: skip


class Metrics(Protocol):
    """Where counts go; called from any thread."""

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """Add to a counter; ``label`` is the rule code of a mismatch, else empty."""
        ...

    def set(self, name: str, value: float, label: str = "") -> None:
        """Set a gauge; ``label`` is the state of ``weightguard_state``, else empty."""
        ...


class MemoryMetrics:
    """Counts kept in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, str], float] = {}

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        """See Metrics."""
        with self._lock:
            self._values[name, label] = self._values.get((name, label), 0) + amount

    def set(self, name: str, value: float, label: str = "") -> None:
        """See Metrics."""
        with self._lock:
            self._values[name, label] = value

    def value(self, name: str, label: str = "") -> float:
        """Return a count, 0 where nothing was counted."""
        with self._lock:
            return self._values.get((name, label), 0)

    def renew_lock(self) -> None:
        """After a fork: the thread that may have held the lock is not there any more."""
        self._lock = threading.Lock()

    def values(self) -> dict[tuple[str, str], float]:
        """Return all counts by name and label."""
        with self._lock:
            return dict(self._values)
