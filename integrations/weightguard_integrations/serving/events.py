"""Incidents as OpenTelemetry events; needs the extra ``telemetry``.

Only the API is used: where events go is the application's to say, by the provider that it sets.
An incident that comes while a request is traced carries the request's trace and span.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from weightguard import WeightguardError
from weightguard.catalogue import Severity
from weightguard.guard import Incident
from weightguard.version import VERSION

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.util.types import AnyValue

EVENT = "weightguard.incident"
"""The name of every event; ``weightguard.code`` tells them apart."""


def incident_events(provider: LoggerProvider | None = None) -> Callable[[Incident], None]:
    """Return a reaction that emits each incident as an event, through the global provider or this.

    Severity and time are the incident's, the body is its message; attributes ``weightguard.code``,
    ``.number``, ``.cause``, ``.tensor``, ``.block``, ``.row`` and ``.element`` as far as they are
    known. Raises WeightguardError without the opentelemetry-api package.
    """
    try:
        from opentelemetry._logs import SeverityNumber, get_logger
    except ImportError as error:
        raise WeightguardError(
            "incidents as events need opentelemetry-api: "
            "pip install 'weightguard-integrity[telemetry]'"
        ) from error
    severities = {
        Severity.INFO: SeverityNumber.INFO,
        Severity.WARNING: SeverityNumber.WARN,
        Severity.ERROR: SeverityNumber.ERROR,
        Severity.CRITICAL: SeverityNumber.FATAL,
    }
    logger = get_logger("weightguard.guard", VERSION, provider)

    def emit_event(incident: Incident) -> None:
        logger.emit(
            event_name=EVENT,
            timestamp=int(incident.at * 1e9),
            severity_number=severities[incident.level],
            severity_text=incident.finding.severity,
            body=incident.finding.message,
            attributes=_attributes(incident),
        )

    return emit_event


def _attributes(incident: Incident) -> dict[str, AnyValue]:
    location = incident.finding.location
    known: dict[str, AnyValue] = {
        "code": incident.code,
        "number": incident.number,
        "cause": incident.cause,
        "tensor": location.tensor,
        "block": location.block,
        "row": location.row,
        "element": location.element,
    }
    return {f"weightguard.{name}": value for name, value in known.items() if value is not None}
