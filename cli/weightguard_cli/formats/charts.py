"""Geometry of the plots: where marks, lines and words stand, in percent of the plot's area.

Percentages let one SVG fit any screen without stretching its text, which a drawing of fixed size
cannot; and plain shapes can follow the reader's colour scheme under a policy that forbids scripts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from weightguard.catalogue import Severity
from weightguard.ranges import TensorRange
from weightguard.salient import OutlierChannel
from weightguard_cli.escape import escape_name

MAX_BARS = 300
"""Bars of the range plot; where a model has more tensors, a bar stands for several."""
MAX_TICKS = 6
MAX_CHANNELS = 24
T = TypeVar("T")

LEFT, RIGHT, TOP, BOTTOM = 13.0, 99.5, 4.0, 96.0


@dataclass(frozen=True, slots=True)
class Tick:
    """A line of the grid and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle with its colour class and what a pointer over it is told."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Bars over a grid; ``per_bar`` tensors stand in each."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    per_bar: int


class LogAxis:
    """A logarithmic axis from one power of ten to another."""

    def __init__(self, least: float, greatest: float):
        self._low = math.floor(math.log10(least))
        self._high = max(math.ceil(math.log10(greatest)), self._low + 1)

    def height(self, value: float) -> float:
        """Return where a value stands, from the top."""
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return BOTTOM - (BOTTOM - TOP) * share

    def bar(self, number: int, of: int, span: tuple[float, float], words: tuple[str, str]) -> Bar:
        """Return bar ``number`` of ``of`` over a span of values; ``words`` are kind and title."""
        step = (RIGHT - LEFT) / of
        bottom, top = map(self.height, span)
        x, width, tall = LEFT + number * step, min(step * 0.7, 4), max(bottom - top, 0.8)
        return Bar(round(x, 2), round(top, 2), round(width, 2), round(tall, 2), *words)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """Lines at powers of ten, at most ``MAX_TICKS`` and one."""
        stride = max(1, math.ceil((self._high - self._low) / MAX_TICKS))
        powers = range(self._low, self._high + 1, stride)
        return tuple(Tick(round(self.height(10.0**p), 2), _power(p)) for p in powers)


def in_groups(shown: Sequence[T]) -> list[Sequence[T]]:
    """Return what each bar stands for: neighbours share one where there are too many."""
    per_bar = max(1, -(-len(shown) // MAX_BARS))
    return [shown[i : i + per_bar] for i in range(0, len(shown), per_bar)]


def range_plot(ranges: Sequence[TensorRange], worst: Mapping[str, Severity]) -> Plot | None:
    """Return each tensor's rms to greatest magnitude on a logarithmic axis; None for no values."""
    shown = [t for t in ranges if not t.raw and t.absmax > 0 and t.rms > 0]
    if not shown:
        return None
    axis = LogAxis(min(min(t.rms, t.absmax) for t in shown), max(t.absmax for t in shown))
    groups = in_groups(shown)
    bars = [
        axis.bar(
            number,
            len(groups),
            (min(t.rms for t in group), max(t.absmax for t in group)),
            (_kind(group, worst), _title(group)),
        )
        for number, group in enumerate(groups)
    ]
    return Plot(tuple(bars), axis.ticks, len(groups[0]))


def _kind(group: Sequence[TensorRange], worst: Mapping[str, Severity]) -> str:
    found = [worst[tensor.name] for tensor in group if tensor.name in worst]
    return max(found).label if found else "sound"


def _title(group: Sequence[TensorRange]) -> str:
    first = escape_name(group[0].name)
    names = first if len(group) == 1 else f"{first} and {len(group) - 1} more"
    return (
        f"{names}: rms {min(t.rms for t in group):.4g}, "
        f"greatest magnitude {max(t.absmax for t in group):.4g}"
    )


def _power(power: int) -> str:
    return {-2: "0.01", -1: "0.1", 0: "1", 1: "10", 2: "100"}.get(power, f"1e{power}")


@dataclass(frozen=True, slots=True)
class ChannelBar:
    """An outlier channel and the length of its bar in percent."""

    name: str
    value: str
    heaviness: str
    length: float


def channel_bars(channels: Sequence[OutlierChannel]) -> list[ChannelBar]:
    """Return the heaviest channels, their bars on a logarithmic axis from heaviness 1."""
    shown = channels[:MAX_CHANNELS]
    longest = max((math.log10(max(c.heaviness, 1.1)) for c in shown), default=1.0)
    return [
        ChannelBar(
            f"{c.axis} {c.index} of {escape_name(c.tensor)}",
            f"{c.value:.5g}",
            f"{c.heaviness:.4g}",
            round(max(100 * math.log10(max(c.heaviness, 1.1)) / longest, 1), 2),
        )
        for c in shown
    ]
