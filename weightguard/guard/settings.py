"""What a guard is told, what it takes from outside, and what it says of itself."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from weightguard.guard.coverage import LiveCoverage
from weightguard.guard.metrics import MemoryMetrics, Metrics
from weightguard.guard.reactions import Reaction
from weightguard.guard.schedule import Pace, Random
from weightguard.guard.shares import Declared

DEFAULT_REACTIONS: tuple[Reaction, ...] = ("log", "metrics", "repair")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a guard works.

    ``name`` is what reports call the model. ``pace`` is that of the background thread, None for
    none. ``step_bytes`` are checked from one forward pass to the next; the pass pays for what the
    thread did not reach meanwhile. ``threads`` seal. ``declared`` says of which attested bytes live
    tensors are made up, by name, and which of them several processes verify together.
    """

    name: str = "model"
    on_incident: Sequence[Reaction] = DEFAULT_REACTIONS
    pace: Pace | None = None
    step_bytes: int = 0
    threads: int = 1
    metrics: Metrics = field(default_factory=MemoryMetrics)
    declared: Declared = field(default_factory=Declared)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a guard takes from outside and tests replace: time, waiting, and chance."""

    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    random: Random = field(default_factory=secrets.SystemRandom)


class Pinned(NamedTuple):
    """Bytes ``start:stop`` of a live tensor that are compared before every forward pass."""

    tensor: str
    start: int
    stop: int


class Status(msgspec.Struct, frozen=True):
    """Where a guard stands, for people and monitors.

    ``state`` is ``closed`` once the guard is. ``passes`` are full passes over all blocks, and
    ``last_full_pass`` is in seconds since the epoch. ``baseline_bytes`` is the memory that the
    baseline takes.
    """

    state: str
    ready: bool
    incidents: int
    open: int
    passes: int
    last_full_pass: float | None
    pass_bytes: int
    baseline_bytes: int
    coverage: LiveCoverage
