"""What a guard counts, as Prometheus reads it: the same names, and labels for codes and states."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from weightguard.guard import MemoryMetrics
from weightguard.guard.metrics import (
    BLOCKS_VERIFIED,
    COVERAGE_RATIO,
    LAST_FULL_PASS,
    MISMATCHES,
    REPAIRS,
    SCRUB_BYTES,
    STATE,
)

_COUNTERS = {
    BLOCKS_VERIFIED: "Blocks of live weights that were checked and hold.",
    SCRUB_BYTES: "Bytes of live weights that were checked and hold.",
    REPAIRS: "Damaged blocks that were put back.",
}
_GAUGES = {
    LAST_FULL_PASS: "When all blocks were last checked, in seconds since the epoch; 0 for never.",
    COVERAGE_RATIO: "The share of live bytes that is checked, from 0 to 1.",
}


class GuardCollector(Collector):
    """Reads a guard's counts when Prometheus asks; nothing is counted twice or on the way."""

    def __init__(self, metrics: MemoryMetrics):
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; those that nothing was counted for yet are 0."""
        for name, told in _COUNTERS.items():
            yield CounterMetricFamily(name, told, value=self._metrics.value(name))
        for name, told in _GAUGES.items():
            yield GaugeMetricFamily(name, told, value=self._metrics.value(name))
        mismatches = CounterMetricFamily(
            MISMATCHES, "Incidents of severity error and above, by rule code.", labels=["code"]
        )
        states = GaugeMetricFamily(STATE, "1 for the state that holds.", labels=["state"])
        for (name, label), value in sorted(self._metrics.values().items()):
            if name == MISMATCHES:
                mismatches.add_metric([label], value)
            elif name == STATE:
                states.add_metric([label], value)
        yield mismatches
        yield states
