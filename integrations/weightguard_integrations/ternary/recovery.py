"""What follows an alarm of a product: look at the stored bytes, act as told, say what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from weightguard.errors import IntegrityError
from weightguard.finding import Coverage
from weightguard.guard.incident import report
from weightguard_integrations.ternary.incident import Action, product_finding
from weightguard_integrations.ternary.operands import Operand, fill_nan

if TYPE_CHECKING:
    from weightguard_integrations.ternary.matrix import OnFault, PackedMatrix


def handle(
    matrix: PackedMatrix,
    alarms: bytes,
    product: Callable[[], bytes | None],
    out: Operand,
    on_fault: OnFault,
) -> None:
    """Act on ``alarms``, one byte a token, and have the incidents kept and told.

    Returns when the outputs are right, or marked as the caller asked. Raises IntegrityError with
    the incidents' findings otherwise, with NaN in place of the outputs concerned.
    """
    stored = matrix.check().findings
    tokens = [token for token, alarm in enumerate(alarms) if alarm]
    action: Action = "raised"
    if on_fault == "mark":
        action = "marked"
    elif on_fault != "raise":
        if on_fault == "repair" and stored:
            matrix.repair()
        again = product()
        if again is None:
            action = "repaired" if on_fault == "repair" and stored else "recomputed"
        else:
            tokens = [token for token, alarm in enumerate(again) if alarm]
    if action in ("raised", "marked"):
        fill_nan(out, tokens)
    found = product_finding(matrix.name, alarms, stored, action)
    incidents = matrix.note([found, *stored])
    if action == "raised":
        coverage = Coverage(1, 1, matrix.nbytes, matrix.nbytes)
        raise IntegrityError(report(matrix.name, incidents, coverage))
