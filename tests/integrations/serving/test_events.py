"""Incidents as OpenTelemetry events, as the SDK's exporter gets them."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider

from tests.conformance.arrays import ArrayAdapter
from tests.integrations.serving.test_routes import damage, model
from weightguard import WeightguardError
from weightguard.guard import Guard, Settings
from weightguard_integrations.serving import incident_events


@pytest.fixture
def exporter() -> InMemoryLogRecordExporter:
    return InMemoryLogRecordExporter()


@pytest.fixture
def provider(exporter: InMemoryLogRecordExporter) -> LoggerProvider:
    made = LoggerProvider()
    made.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    return made


def test_damage_and_its_repair_are_events_of_the_request_that_met_them(
    exporter: InMemoryLogRecordExporter, provider: LoggerProvider
) -> None:
    runtime = model()
    reactions = (incident_events(provider), "repair")
    guard = Guard(ArrayAdapter(runtime), settings=Settings(on_incident=reactions))  # type: ignore[arg-type]
    damage(runtime)
    with TracerProvider().get_tracer("requests").start_as_current_span("complete") as span:
        guard.check()
    trusted, found, healed = (log.log_record for log in exporter.get_finished_logs())
    assert {record.event_name for record in (trusted, found, healed)} == {"weightguard.incident"}
    assert trusted.severity_number is SeverityNumber.WARN
    assert (found.severity_number, found.severity_text) == (SeverityNumber.FATAL, "critical")
    assert found.attributes == {
        "weightguard.code": "WG901",
        "weightguard.number": 2,
        "weightguard.tensor": "w",
        "weightguard.block": 0,
        "weightguard.row": 3,
        "weightguard.element": (3, 4),
    }
    incident = guard.incidents[1]
    assert found.body == incident.finding.message
    assert found.timestamp == int(incident.at * 1e9)
    assert found.trace_id == span.get_span_context().trace_id
    assert healed.attributes["weightguard.code"] == "WG907"
    assert healed.attributes["weightguard.cause"] == 2


def test_without_a_provider_nothing_is_emitted_and_nothing_fails() -> None:
    runtime = model()
    guard = Guard(ArrayAdapter(runtime), settings=Settings(on_incident=(incident_events(),)))
    damage(runtime)
    guard.check()
    assert "WG912" not in [incident.code for incident in guard.incidents]


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(WeightguardError, match=r"weightguard-integrity\[telemetry\]"):
        incident_events()
