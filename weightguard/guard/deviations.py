"""What deviates from a baseline, put into findings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from weightguard.finding import Finding, finding
from weightguard.guard.adapter import AdapterError, LiveTensor
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.identity import Writer
from weightguard.guard.incident import (
    ADAPTER_SWAPPED,
    BASELINE_DAMAGED,
    CORRUPTION,
    TENSOR_APPEARED,
    TENSOR_VANISHED,
    UNDECLARED_UPDATE,
    UNREADABLE,
)
from weightguard.guard.ledger import Place
from weightguard.guard.mend import Diagnosis
from weightguard.guard.schedule import BlockRef
from weightguard.rules.equality import describe

MAX_LISTED = 16
"""Rows and elements that one incident lists."""
MAX_MESSAGE = 500
"""Characters of a message that somebody else wrote."""
READING, PRESENCE = "reading", "presence"
"""Aspects of a place: whether a tensor can be read, and whether it is there."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """What deviates, where, and ``mark``, which tells it from another deviation there."""

    place: Place
    mark: Hashable
    finding: Finding


def updated(name: str, writer: Writer, moves: Sequence[str]) -> Deviation:
    """Return WG902 or WG904: a tensor was written by somebody who did not declare it."""
    code = ADAPTER_SWAPPED if writer == "adapter" else UNDECLARED_UPDATE
    how = ", ".join(moves) or "it was written and put back"
    message = f"its bytes are others than were sealed: {how}"
    found = finding(code, message, tensor=name, evidence={"moved": list(moves)})
    return Deviation(Place(name), code, found)


def corruption(ref: BlockRef, diagnosis: Diagnosis) -> Finding:
    """Return WG901 for a block, as precise as its residues allow."""
    elements = diagnosis.elements
    first = elements[0] if elements else None
    return finding(
        CORRUPTION,
        _damage(diagnosis),
        tensor=ref.tensor,
        block=ref.block,
        row=diagnosis.rows[0] if diagnosis.rows else None,
        element=None if first is None else first.index,
        evidence={
            "row_count": len(diagnosis.rows),
            "rows": list(diagnosis.rows[:MAX_LISTED]),
            "elements": [
                {
                    "index": list(element.index),
                    "old_bits": f"{element.old_bits:#x}",
                    "new_bits": f"{element.new_bits:#x}",
                    "flipped_bits": list(element.flipped),
                    "confirmed": element.confirmed,
                }
                for element in elements[:MAX_LISTED]
            ],
        },
    )


def _damage(diagnosis: Diagnosis) -> str:
    rows, elements = len(diagnosis.rows), diagnosis.elements
    if not rows:
        return "changed in a way that its residues do not show: more than two words of a row"
    where = f"{rows} row{'' if rows == 1 else 's'} changed"
    if not elements:
        return f"{where}, by more than one element each"
    certainty = "" if diagnosis.cure is not None else "consistent with "
    more = f" and {len(elements) - 1} more" if len(elements) > 1 else ""
    return f"{where}: {certainty}{describe(elements[0])}{more}"


def vanished(name: str, entry: TensorBaseline) -> Deviation:
    """Return WG914: a sealed tensor is not there any more."""
    was = f"{entry.tensor.dtype.name} {list(entry.tensor.shape)}"
    message = f"the sealed {was} is gone from the live model, or has another type, shape or device"
    return Deviation(
        Place(name, aspect=PRESENCE),
        TENSOR_VANISHED,
        finding(TENSOR_VANISHED, message, tensor=name),
    )


def appeared(tensor: LiveTensor) -> Deviation:
    """Return WG915: a tensor is there that was not sealed."""
    message = f"{tensor.dtype.name} {list(tensor.shape)} was not there when the model was sealed"
    return Deviation(
        Place(tensor.name, aspect=PRESENCE),
        (TENSOR_APPEARED, tensor.dtype.name, tensor.shape),
        finding(TENSOR_APPEARED, message, tensor=tensor.name),
    )


def unreadable(name: str, error: Exception) -> Deviation:
    """Return WG911 for a tensor, or with an empty name for the list of all."""
    known = isinstance(error, AdapterError)
    message = str(error) if known else f"reading failed: {type(error).__name__}: {error}"
    return Deviation(
        Place(name, aspect=READING),
        UNREADABLE,
        finding(UNREADABLE, message[:MAX_MESSAGE], tensor=name or None),
    )


def record_damaged(name: str) -> Deviation:
    """Return WG913: the guard's own record of a tensor is damaged."""
    message = "the guard's digests and residues of it are not those that were made"
    return Deviation(
        Place(name, aspect="record"),
        BASELINE_DAMAGED,
        finding(BASELINE_DAMAGED, message, tensor=name),
    )
