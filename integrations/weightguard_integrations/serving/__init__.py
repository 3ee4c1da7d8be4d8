"""Serving: a guard's metrics for Prometheus, and its state over HTTP; needs the extra ``serve``.

``GuardCollector(metrics)`` is registered with a Prometheus registry; ``guard_app(guard)`` answers
probes and scrapes by itself, ``GuardRoutes(app, guard)`` beside the requests of another ASGI app.
``sound_answer(guard, compute)`` gives only answers that no known damage touched;
``incident_events()`` is a reaction for OpenTelemetry, with the extra ``telemetry``.
"""

from weightguard_integrations.serving.answers import sound_answer
from weightguard_integrations.serving.collector import GuardCollector
from weightguard_integrations.serving.events import incident_events
from weightguard_integrations.serving.routes import GuardRoutes, guard_app

__all__ = ["GuardCollector", "GuardRoutes", "guard_app", "incident_events", "sound_answer"]
