"""The guard: keeps a live model equal to what was attested when it was loaded."""

from weightguard.guard.adapter import (
    Accounting,
    Adapter,
    AdapterError,
    Attachable,
    Gap,
    Glance,
    Glancing,
    Hearing,
    Incomplete,
    LiveTensor,
    Token,
    Witness,
    Writable,
)
from weightguard.guard.coverage import LiveCoverage
from weightguard.guard.golden import GoldenCheckpoint
from weightguard.guard.guard import Guard
from weightguard.guard.incident import Incident
from weightguard.guard.mend import Golden
from weightguard.guard.metrics import MemoryMetrics, Metrics
from weightguard.guard.pieces import Piece
from weightguard.guard.pins import super_weight_pins
from weightguard.guard.schedule import Pace, Position, Schedule
from weightguard.guard.settings import Pinned, Settings, Status, Surroundings
from weightguard.guard.state import Event, State

__all__ = [
    "Accounting",
    "Adapter",
    "AdapterError",
    "Attachable",
    "Event",
    "Gap",
    "Glance",
    "Glancing",
    "Golden",
    "GoldenCheckpoint",
    "Guard",
    "Hearing",
    "Incident",
    "Incomplete",
    "LiveCoverage",
    "LiveTensor",
    "MemoryMetrics",
    "Metrics",
    "Pace",
    "Piece",
    "Pinned",
    "Position",
    "Schedule",
    "Settings",
    "State",
    "Status",
    "Surroundings",
    "Token",
    "Witness",
    "Writable",
    "super_weight_pins",
]
