"""What a checked product or a check of packed bytes found, and what was done about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, TypeAlias

from weightguard.finding import Finding

Action: TypeAlias = Literal["raised", "marked", "recomputed", "repaired"]


class Alarm(enum.IntFlag):
    """What disagreed in a product, a bit each; the kernel's values."""

    WEIGHTS = 1
    ACTIVATIONS = 2
    SEAL = 4
    SCALES = 8
    TOKEN_SCALE = 16

    @property
    def words(self) -> list[str]:
        """What disagreed, in words."""
        return [_WORDS[alarm] for alarm in Alarm if alarm in self]


_WORDS = {
    Alarm.WEIGHTS: "outputs against the check rows",
    Alarm.ACTIVATIONS: "activations against their sum",
    Alarm.SEAL: "activations against their seal",
    Alarm.SCALES: "scales against their sum",
    Alarm.TOKEN_SCALE: "token scale against its copy",
}


@dataclass(frozen=True, slots=True)
class ProductIncident:
    """One alarm of a product: a finding, and what was done.

    ``at`` is seconds since the epoch; ``tokens`` the flat indices of the products concerned;
    ``causes`` the findings about stored bytes that explain it, none for a passing fault.
    """

    at: float
    finding: Finding
    action: Action
    tokens: tuple[int, ...]
    causes: tuple[Finding, ...]
