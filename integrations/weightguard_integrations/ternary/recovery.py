"""What follows an alarm of a product: look at the stored bytes, act as told, keep the incident."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from weightguard.errors import IntegrityError
from weightguard.finding import Coverage, Finding, Report, finding, ordered
from weightguard_integrations.ternary.incident import Action, Alarm, ProductIncident
from weightguard_integrations.ternary.operands import Operand, fill_nan

if TYPE_CHECKING:
    from weightguard_integrations.ternary.matrix import OnFault, PackedMatrix

LOGGER = logging.getLogger("weightguard.ternary")

MAX_LISTED = 100
"""Tokens that a finding names."""


def handle(
    matrix: PackedMatrix,
    alarms: bytes,
    product: Callable[[], bytes | None],
    out: Operand,
    on_fault: OnFault,
) -> None:
    """Act on ``alarms``, one byte a token, and keep the incident.

    Returns when the outputs are right, or marked as the caller asked. Raises IntegrityError with
    the incident's findings otherwise, with NaN in place of the outputs concerned.
    """
    causes = matrix.check().findings
    tokens = [token for token, alarm in enumerate(alarms) if alarm]
    action: Action = "raised"
    if on_fault == "mark":
        action = "marked"
    elif on_fault != "raise":
        if on_fault == "repair" and causes:
            matrix.repair()
        again = product()
        if again is None:
            action = "repaired" if on_fault == "repair" and causes else "recomputed"
        else:
            tokens = [token for token, alarm in enumerate(again) if alarm]
    incident = ProductIncident(
        time.time(), _finding(matrix, alarms, causes, action), action, tuple(tokens), causes
    )
    matrix.incidents.append(incident)
    for found in (incident.finding, *causes):
        _log(matrix.name, found)
    if action in ("raised", "marked"):
        fill_nan(out, tokens)
    if action == "raised":
        raise IntegrityError(_report(matrix, incident))


def _finding(
    matrix: PackedMatrix, alarms: bytes, causes: tuple[Finding, ...], action: Action
) -> Finding:
    tokens = [token for token, alarm in enumerate(alarms) if alarm]
    kinds = Alarm(0)
    for alarm in alarms:
        kinds |= Alarm(alarm)
    cause = "stored bytes changed" if causes else "no stored byte changed: a passing fault"
    return finding(
        "WG920",
        f"a checked product disagreed in {len(tokens)} of {len(alarms)} tokens; {cause}",
        tensor=matrix.name,
        row=causes[0].location.row if causes else None,
        evidence={"disagreed": kinds.words, "tokens": tokens[:MAX_LISTED], "action": action},
    )


def _log(name: str, found: Finding) -> None:
    # names come from files: nothing of them may look like another line
    line = f"{found.rule} {name:.200}: {found.message}"
    LOGGER.critical("%s", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


def _report(matrix: PackedMatrix, incident: ProductIncident) -> Report:
    return Report(
        checkpoint=matrix.name,
        format=matrix.kind,
        complete=True,
        findings=ordered((incident.finding, *incident.causes)),
        coverage=Coverage(1, 1, matrix.nbytes, matrix.nbytes),
    )
