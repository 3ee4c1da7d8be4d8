"""A guard over HTTP: liveness, readiness, status and metrics, alone or beside another ASGI app.

/healthz             200 as long as the process answers: damaged weights need no restart
/readyz              200 while the model may answer, degraded included; 503 in quarantine, while
                     it is sealed, and once the guard is closed
/weightguard/status  where the guard stands, as JSON
/metrics             the text that Prometheus scrapes
"""

from __future__ import annotations

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from weightguard import WeightguardError
from weightguard.guard import Guard, MemoryMetrics
from weightguard_integrations.serving.collector import GuardCollector


class _Answers:
    """Answers from what a guard knows; nothing here waits for a check."""

    def __init__(self, guard: Guard):
        if not isinstance(guard.metrics, MemoryMetrics):
            raise WeightguardError(
                f"a {type(guard.metrics).__name__} cannot be read back: give the guard no metrics "
                "of its own, and Prometheus reads those that it counts in memory"
            )
        self._guard, self._registry = guard, CollectorRegistry()
        self._registry.register(GuardCollector(guard.metrics))

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self._health),
            Route("/readyz", self._ready),
            Route("/weightguard/status", self._status),
            Route("/metrics", self._metrics),
        ]

    async def _health(self, _request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _ready(self, _request: Request) -> Response:
        guard = self._guard
        return PlainTextResponse(f"{guard.standing}\n", 200 if guard.ready else 503)

    # not async, so that it runs in a thread: coverage walks over all live tensors
    def _status(self, _request: Request) -> Response:
        body = msgspec.json.encode(self._guard.status())
        return Response(body, media_type="application/json")

    async def _metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


def guard_app(guard: Guard) -> Starlette:
    """Return an ASGI app that answers for ``guard`` alone, for a port of its own.

    Raises WeightguardError where the guard counts into metrics that cannot be read back.
    """
    return Starlette(routes=_Answers(guard).routes())


class GuardRoutes:
    """ASGI middleware: answers the guard's paths, and passes everything else on.

    ``app.add_middleware(GuardRoutes, guard=guard)`` in Starlette and FastAPI.
    """

    def __init__(self, app: ASGIApp, guard: Guard):
        """Raises WeightguardError as ``guard_app`` does."""
        self._app, self._own = app, guard_app(guard)
        self._paths = {route.path for route in _Answers(guard).routes()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on. See ASGI."""
        mine = scope["type"] == "http" and scope["path"] in self._paths
        await (self._own if mine else self._app)(scope, receive, send)
