"""Geometry of the plots: where marks, lines and words stand, in percent of the plot's area.

Percentages let one SVG fit any screen without stretching its text, which a drawing of fixed size
cannot; and plain shapes can follow the reader's colour scheme under a policy that forbids scripts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightguard.catalogue import Severity
from weightguard.ranges import TensorRange
from weightguard.salient import OutlierChannel
from weightguard_cli.escape import escape_name

MAX_BARS = 300
"""Bars of the range plot; where a model has more tensors, a bar stands for several."""
MAX_TICKS = 6
MAX_CHANNELS = 24
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


def range_plot(ranges: Sequence[TensorRange], worst: Mapping[str, Severity]) -> Plot | None:
    """Return each tensor's rms to greatest magnitude on a logarithmic axis; None for no values."""
    shown = [t for t in ranges if not t.raw and t.absmax > 0 and t.rms > 0]
    if not shown:
        return None
    low = math.floor(min(math.log10(min(t.rms, t.absmax)) for t in shown))
    high = max(math.ceil(max(math.log10(t.absmax) for t in shown)), low + 1)

    def height(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (math.log10(value) - low) / (high - low)

    per_bar = -(-len(shown) // MAX_BARS)
    groups = [shown[i : i + per_bar] for i in range(0, len(shown), per_bar)]
    step = (RIGHT - LEFT) / len(groups)
    bars = []
    for number, group in enumerate(groups):
        top, bottom = height(max(t.absmax for t in group)), height(min(t.rms for t in group))
        tall = max(bottom - top, 0.8)
        x, width = LEFT + number * step, min(step * 0.7, 4)
        bars.append(
            Bar(round(x, 2), round(top, 2), round(width, 2), round(tall, 2),
                _kind(group, worst), _title(group))
        )  # fmt: skip
    stride = max(1, math.ceil((high - low) / MAX_TICKS))
    ticks = [
        Tick(round(height(10.0**power), 2), _power(power)) for power in range(low, high + 1, stride)
    ]
    return Plot(tuple(bars), tuple(ticks), per_bar)


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
