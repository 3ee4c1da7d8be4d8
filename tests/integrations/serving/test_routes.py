"""A guard over HTTP, asked by a real client on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from tests.conformance.arrays import ArrayAdapter, ArrayRuntime
from weightguard import WeightguardError
from weightguard.guard import Guard, Settings
from weightguard.guard.metrics import NAMES
from weightguard_integrations.serving import GuardRoutes, guard_app


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve on a free port of loopback; yields where."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ends = time.monotonic() + 30
    while not server.started and time.monotonic() < ends:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def get(url: str) -> tuple[int, str]:
    try:
        with urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def counts(url: str) -> dict[tuple[str, str], float]:
    status, text = get(url + "/metrics")
    assert status == 200
    return parsed(text)


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Return every sample by name and label, as Prometheus reads the text."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, next(iter(s.labels.values()), "")): s.value for s in samples}


def model() -> ArrayRuntime:
    generator = np.random.default_rng(3)
    return ArrayRuntime({"w": generator.standard_normal((64, 64)).astype(np.float32)})


def damage(runtime: ArrayRuntime) -> None:
    runtime.arrays["w"].view(np.uint32)[3, 4] ^= 1 << 30


def test_readiness_falls_in_quarantine_and_recovers_and_liveness_stays() -> None:
    runtime = model()
    settings = Settings(on_incident=("metrics", "quarantine"))
    guard = Guard(ArrayAdapter(runtime), settings=settings)
    with served(guard_app(guard)) as url:
        assert get(url + "/readyz") == (200, "healthy\n")
        assert counts(url)["weightguard_state", "healthy"] == 1
        damage(runtime)
        guard.check()
        assert get(url + "/readyz") == (503, "quarantined\n")
        assert get(url + "/healthz")[0] == 200
        seen = counts(url)
        assert seen["weightguard_state", "quarantined"] == 1
        assert seen["weightguard_mismatches_total", "WG901"] == 1
        damage(runtime)
        guard.check()
        assert get(url + "/readyz") == (200, "healthy\n")
        assert json.loads(get(url + "/weightguard/status")[1])["state"] == "healthy"


def test_degraded_is_ready_and_a_repair_is_counted() -> None:
    runtime = model()
    guard = Guard(ArrayAdapter(runtime), settings=Settings(on_incident=("metrics",)))
    with served(guard_app(guard)) as url:
        damage(runtime)
        guard.check()
        assert get(url + "/readyz") == (200, "degraded\n")
        guard.repair(guard.incidents[-1])
        assert get(url + "/readyz") == (200, "healthy\n")
        seen = counts(url)
        assert seen["weightguard_repairs_total", ""] == 1
        assert seen["weightguard_coverage_ratio", ""] == 1
        assert seen["weightguard_scrub_bytes_total", ""] == guard.metrics.value(  # type: ignore[attr-defined]
            "weightguard_scrub_bytes_total"
        )


def test_a_closed_guard_is_not_ready() -> None:
    guard = Guard(ArrayAdapter(model()))
    with served(guard_app(guard)) as url:
        guard.close()
        assert get(url + "/readyz") == (503, "closed\n")
        assert not any(v for (name, _), v in counts(url).items() if name == "weightguard_state")
        assert get(url + "/healthz")[0] == 200
        status = json.loads(get(url + "/weightguard/status")[1])
        assert (status["state"], status["ready"]) == ("closed", False)


def test_every_name_is_shown_and_nothing_else() -> None:
    runtime = model()
    guard = Guard(ArrayAdapter(runtime), settings=Settings(on_incident=("metrics",)))
    damage(runtime)
    guard.check()
    with served(guard_app(guard)) as url:
        assert {name for name, _ in counts(url)} == set(NAMES)


def test_the_middleware_answers_its_paths_and_passes_on_the_others() -> None:
    async def hello(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    guard = Guard(ArrayAdapter(model()))
    app = Starlette(routes=[Route("/generate", hello)])
    app.add_middleware(GuardRoutes, guard=guard)
    with served(app) as url:
        assert get(url + "/generate") == (200, "hello")
        assert get(url + "/healthz") == (200, "ok\n")
        assert get(url + "/elsewhere")[0] == 404
        guard.quarantine()
        assert get(url + "/readyz")[0] == 503
        assert get(url + "/generate") == (200, "hello"), "who routes requests decides"


def test_metrics_that_cannot_be_read_back_are_refused() -> None:
    class Elsewhere:
        def add(self, name: str, amount: float = 1, label: str = "") -> None:
            """Counts nowhere that can be asked."""

        def set(self, name: str, value: float, label: str = "") -> None:
            """Counts nowhere that can be asked."""

    guard = Guard(ArrayAdapter(model()), settings=Settings(metrics=Elsewhere()))
    with pytest.raises(WeightguardError, match="cannot be read back"):
        guard_app(guard)
