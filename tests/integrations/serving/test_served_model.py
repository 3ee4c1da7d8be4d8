"""The example server as a process of its own: flips in its live memory, and what clients see."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.integrations.serving.live_server import Asked, Clients, LiveServer, started
from tests.integrations.serving.test_routes import parsed
from tests.integrations.torch.real_folder import smollm2_folder
from weightguard import fingerprint

pytestmark = [
    pytest.mark.real,
    pytest.mark.proof,
    pytest.mark.xdist_group("served-smollm2"),
]

PROMPTS = ("The capital of France is", "def add(a, b):")
TOKENS = 5
TOP_EXPONENT_BIT = 1 << 14
VICTIMS = [
    f"model.layers.{layer}.{module}.weight"
    for layer, module in [
        (0, "mlp.up_proj"), (5, "self_attn.v_proj"), (11, "mlp.down_proj"), (29, "mlp.gate_proj"),
    ]
]  # fmt: skip
PATIENCE = 240.0
"""Seconds that the guard is given on a busy machine; idle, a pass takes half a second."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """SmolLM2 without a golden copy, so that damage beyond the residues stays."""
    folder, work = smollm2_folder(), tmp_path_factory.mktemp("served")
    manifest = work / "model.weightguard.json"
    with fingerprint(folder) as made:
        made.write(manifest)
    with started(work, folder, manifest) as running:
        yield running
    assert running.process.returncode in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in running.said()


@pytest.fixture(scope="module")
def clean(server: LiveServer) -> dict[str, str]:
    return {prompt: server.complete(prompt, TOKENS).text for prompt in PROMPTS}


def wait_for(what: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < ends, "it did not come to that"
        time.sleep(0.1)


def counts(server: LiveServer) -> dict[tuple[str, str], float]:
    return parsed(server.get("/metrics").body)


def ready(server: LiveServer) -> int:
    return server.get("/readyz").status


def test_flips_under_load_are_healed_and_no_answer_after_their_discovery_is_wrong(
    server: LiveServer, clean: dict[str, str], claim: Callable[[str], None]
) -> None:
    before, flipped = counts(server), {}
    clients = Clients(server, PROMPTS, TOKENS)
    with clients.running(2):
        for number, victim in enumerate(VICTIMS):
            flipped[victim] = server.flip(victim, [1000 + number], TOP_EXPONENT_BIT)
            wait_for(lambda count=number: codes(server).count("WG907") == count + 1)  # type: ignore[misc]
            healed = len(clients.asked)
            # an answer that meets a flip each time it is computed is refused, rightly
            wait_for(lambda count=healed: len(clients.asked) >= count + 2)  # type: ignore[misc]
    found = {i["tensor"]: i["at"] for i in server.incidents() if i["code"] == "WG901"}
    assert found.keys() == flipped.keys()
    assert clients.errors == []
    assert {asked.reply.status for asked in clients.asked} == {200}
    wrong = [asked for asked in clients.asked if asked.text != clean[asked.prompt]]
    assert [asked for asked in wrong if not excused(asked, flipped, found)] == []
    assert {p: server.complete(p, TOKENS).text for p in PROMPTS} == clean
    after = counts(server)
    assert after["weightguard_state", "healthy"] == 1
    assert after["weightguard_mismatches_total", "WG901"] == len(VICTIMS)
    assert after["weightguard_repairs_total", ""] == len(VICTIMS)
    for name in ("weightguard_blocks_verified_total", "weightguard_scrub_bytes_total"):
        assert after[name, ""] > before[name, ""]
    assert json.loads(server.get("/weightguard/status").body)["open"] == 0
    claim(
        f"served SmolLM2: {len(VICTIMS)} flips under load healed, {len(clients.asked)} answers, "
        f"{len(wrong)} wrong, each begun before its flip was found"
    )


def codes(server: LiveServer) -> list[str]:
    return [incident["code"] for incident in server.incidents()]


def excused(asked: Asked, flipped: dict[str, float], found: dict[str, float]) -> bool:
    """Return whether a flip that was not found when the request was sent was there at its end."""
    return any(asked.began < found[victim] and asked.ended > flipped[victim] for victim in flipped)


def test_damage_that_cannot_be_healed_takes_the_server_out_of_service_until_it_is_gone(
    server: LiveServer, clean: dict[str, str]
) -> None:
    assert ready(server) == 200
    victim = VICTIMS[2]
    server.flip(victim, [2000, 2001], TOP_EXPONENT_BIT)
    wait_for(lambda: ready(server) == 503)
    wait_for(lambda: "WG908" in codes(server))
    refused = server.complete(PROMPTS[0], TOKENS).reply
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 0
    assert server.get("/healthz").status == 200
    shown = counts(server)
    assert shown["weightguard_state", "quarantined"] == 1
    assert shown["weightguard_mismatches_total", "WG908"] == 1
    server.flip(victim, [2000, 2001], TOP_EXPONENT_BIT)
    wait_for(lambda: ready(server) == 200)
    assert {p: server.complete(p, TOKENS).text for p in PROMPTS} == clean
