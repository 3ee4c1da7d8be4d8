"""The guard: keeps a live model equal to what was attested when it was loaded."""

from weightguard.guard.adapter import (
    Adapter,
    AdapterError,
    Attachable,
    Gap,
    Incomplete,
    LiveTensor,
    Token,
    Writable,
)
from weightguard.guard.coverage import LiveCoverage
from weightguard.guard.incident import Incident
from weightguard.guard.schedule import Pace, Position, Schedule
from weightguard.guard.state import Event, State

__all__ = [
    "Adapter",
    "AdapterError",
    "Attachable",
    "Event",
    "Gap",
    "Incident",
    "Incomplete",
    "LiveCoverage",
    "LiveTensor",
    "Pace",
    "Position",
    "Schedule",
    "State",
    "Token",
    "Writable",
]
