"""What a checked product or a look at stored bytes found, in the words of the guard."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from weightguard.finding import Finding, finding
from weightguard.guard.mend import Diagnosis
from weightguard.guard.schedule import BlockRef
from weightguard_integrations.ternary.live import SCALE
from weightguard_integrations.ternary.place import Geometry

PRODUCT, STORED = "WG920", "WG921"
MAX_LISTED = 100
"""Tokens or changed elements that a finding names."""

Action: TypeAlias = Literal["raised", "marked", "recomputed", "repaired"]


class Alarm(enum.IntFlag):
    """What disagreed in a product, a bit each: the kernel's values, then what lies beside it."""

    WEIGHTS = 1
    ACTIVATIONS = 2
    SEAL = 4
    SCALES = 8
    TOKEN_SCALE = 16
    KEPT = 32
    BIAS = 64

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
    Alarm.KEPT: "kept weights against their copy",
    Alarm.BIAS: "bias against its copy",
}


def product_finding(
    layer: str, alarms: bytes, stored: Sequence[Finding], action: Action
) -> Finding:
    """Return WG920 for a product: which layer, row and tile, what disagreed, what was done.

    ``alarms`` is one byte a token; ``stored`` are findings about stored bytes that explain it,
    none for a passing fault.
    """
    tokens = [token for token, alarm in enumerate(alarms) if alarm]
    kinds = Alarm(0)
    for alarm in alarms:
        kinds |= Alarm(alarm)
    cause = "stored bytes changed" if stored else "no stored byte changed: a passing fault"
    changes = [change for found in stored for change in found.evidence["changes"]]
    return finding(
        PRODUCT,
        f"a checked product disagreed in {len(tokens)} of {len(alarms)} tokens; {cause}; {action}",
        tensor=layer,
        row=changes[0]["row"] if changes else None,
        evidence={
            "disagreed": kinds.words,
            "tokens": tokens[:MAX_LISTED],
            "tile": changes[0].get("tile") if changes else None,
            "action": action,
        },
    )


def stored_finding(layer: str, geometry: Geometry, ref: BlockRef, diagnosis: Diagnosis) -> Finding:
    """Return WG921 for one damaged block of the packed bytes, or for the scales."""
    scales = ref.tensor.endswith(f".{SCALE}")
    changes = [
        _change(geometry, element.index, scales=scales)
        | {"old": element.old_bits, "new": element.new_bits, "confirmed": element.confirmed}
        for element in diagnosis.elements[:MAX_LISTED]
    ]
    what = "the scales" if scales else f"bytes in block {ref.block} of the packed weights"
    return finding(
        STORED,
        f"{what} changed since they were packed",
        tensor=layer,
        block=None if scales else ref.block,
        row=changes[0]["row"] if changes else None,
        evidence={"changes": changes},
    )


def kept_finding(layer: str, changes: Sequence[tuple[int, int, int]]) -> Finding:
    """Return WG921 for kept weights: number, row and column of each that changed."""
    return finding(
        STORED,
        "weights kept in full precision changed since they were packed",
        tensor=layer,
        row=changes[0][1] if changes else None,
        evidence={
            "changes": [
                {"kept": number, "row": row, "columns": [column]}
                for number, row, column in changes[:MAX_LISTED]
            ]
        },
    )


def bias_finding(layer: str, rows: Sequence[int]) -> Finding:
    """Return WG921 for a bias: the rows in which it changed."""
    return finding(
        STORED,
        "the bias changed since the layer was made",
        tensor=layer,
        row=rows[0],
        evidence={"changes": [{"row": row} for row in rows[:MAX_LISTED]]},
    )


def _change(geometry: Geometry, index: tuple[int, ...], *, scales: bool) -> dict[str, Any]:
    if scales:
        return {"row": index[0]}
    offset = int(np.ravel_multi_index(index, (geometry.all_groups, geometry.group_bytes)))
    place = geometry.place(offset)
    return {
        "offset": offset,
        "row": place.row,
        "columns": list(place.columns),
        "tile": place.tile,
        "check_row": place.check,
    }
