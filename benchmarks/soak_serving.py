"""Minutes of requests to a guarded server whose live memory is being damaged all the time.

    python benchmarks/soak_serving.py [--seconds 300] [--every 15] [--clients 2]

Starts examples/serve_fastapi.py with SmolLM2-135M-Instruct as a process of its own, asks it over
HTTP, and damages its weights at random moments: single bits anywhere, top exponent bits, and
bursts of neighbouring elements, which only the golden copy heals. Every answer is compared with
the one from before the damage. A wrong one is excused only if some damage that was there before
it ended had not been found when it was asked for. Ends with status 1 where that is not so, where
a request was lost, or where damage was not found and repaired.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integrations.serving.live_server import Asked, Clients, LiveServer, started
from tests.integrations.torch.real_folder import smollm2_folder
from weightguard import fingerprint
from weightguard.scan.digest import BLOCK_BYTES

PROMPTS = (
    "The capital of France is",
    "def add(a, b):",
    "Water boils at",
    "Once upon a time there was a",
)
TOKENS = 4
TOP_EXPONENT_BIT = 14
BURST = 40
"""Elements that one burst damages at most."""
END = 120.0
"""Seconds that the guard is given for the last damage."""


@dataclass
class Damage:
    """What was done to live memory, and what the guard said of it, in seconds since the epoch."""

    kind: str
    parameter: str
    elements: range
    at: float
    number: int = 0
    found: float | None = None
    repaired: bool = False

    @property
    def block(self) -> int:
        return 2 * self.elements[0] // BLOCK_BYTES


class Harm:
    """Damages bf16 parameters, each as often as its size calls for."""

    def __init__(self, server: LiveServer, seed: int):
        self._server, self._random = server, random.Random(seed)
        self._sizes = server.parameters()

    def do(self) -> Damage:
        draw = self._random
        (name,) = draw.choices([*self._sizes], [*self._sizes.values()])
        kind = draw.choice(("any bit", "top exponent bit", "burst"))
        count = draw.randint(2, BURST) if kind == "burst" else 1
        # within one block: a burst is one damage, and one incident
        first = min(draw.randrange(self._sizes[name]), self._sizes[name] - count)
        first = min(first, first * 2 // BLOCK_BYTES * (BLOCK_BYTES // 2) + BLOCK_BYTES // 2 - count)
        bit = TOP_EXPONENT_BIT if kind != "any bit" else draw.randrange(16)
        elements = range(first, first + count)
        return Damage(kind, name, elements, self._server.flip(name, elements, 1 << bit))


def settle(server: LiveServer, damages: Sequence[Damage]) -> None:
    """Enter into ``damages`` what the server's incidents say of each."""
    incidents = server.incidents()
    known = {damage.number for damage in damages if damage.found is not None}
    causes = {i["cause"] for i in incidents if i["code"] == "WG907"}
    for incident in incidents:
        if incident["code"] != "WG901" or incident["number"] in known:
            continue
        place = (incident["tensor"], incident["block"])
        for damage in damages:
            if damage.found is None and (damage.parameter, damage.block) == place:
                damage.number, damage.found = incident["number"], incident["at"]
                break
    for damage in damages:
        damage.repaired = damage.number in causes


def moments(seconds: float, every: float, draw: random.Random) -> Iterator[None]:
    """Return at random moments, ``every`` seconds apart on average, until the time is over."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(draw.expovariate(1 / every))
        yield


def excused(asked: Asked, damages: Sequence[Damage]) -> bool:
    return any(
        damage.at < asked.ended and (damage.found is None or asked.began < damage.found)
        for damage in damages
    )


def soak(server: LiveServer, seconds: float, every: float, count: int) -> int:
    clean = {prompt: server.complete(prompt, TOKENS).text for prompt in PROMPTS}
    clients, damages = Clients(server, PROMPTS, TOKENS), list[Damage]()
    harm = Harm(server, 1)
    with clients.running(count):
        for _ in moments(seconds, every, random.Random(2)):
            damages.append(harm.do())
        ends = time.monotonic() + END
        while not all(damage.repaired for damage in damages) and time.monotonic() < ends:
            time.sleep(0.2)
            settle(server, damages)
    answered = [asked for asked in clients.asked if asked.reply.status == 200]
    refused = [asked for asked in clients.asked if asked.reply.status == 503]
    lost = len(clients.asked) - len(answered) - len(refused) + len(clients.errors)
    wrong = [asked for asked in answered if asked.text != clean[asked.prompt]]
    late = [asked for asked in wrong if not excused(asked, damages)]
    again = {prompt: server.complete(prompt, TOKENS).text for prompt in PROMPTS}
    found = [damage.found - damage.at for damage in damages if damage.found is not None]
    repaired = sum(damage.repaired for damage in damages)
    kinds = {
        kind: sum(d.kind == kind for d in damages) for kind in sorted({d.kind for d in damages})
    }
    print(f"requests: {len(clients.asked)}, refused with 503: {len(refused)}, lost: {lost}")
    print(f"damaged: {len(damages)} times ({kinds}), found: {len(found)}, repaired: {repaired}")
    if found:
        print(f"seconds to find: median {statistics.median(found):.2f}, most {max(found):.2f}")
    print(f"wrong answers: {len(wrong)}, of them asked for after the damage was found: {len(late)}")
    print(f"state: {server.get('/readyz').body.strip()}, answers as at first: {again == clean}")
    sound = again == clean and repaired == len(damages)
    return 0 if sound and not late and not lost else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--every", type=float, default=15, help="seconds between damages")
    parser.add_argument("--clients", type=int, default=2)
    told = parser.parse_args()
    folder = smollm2_folder()
    with tempfile.TemporaryDirectory() as work:
        manifest = Path(work) / "model.weightguard.json"
        with fingerprint(folder) as made:
            made.write(manifest)
        with started(Path(work), folder, manifest, folder) as server:
            return soak(server, told.seconds, told.every, told.clients)


if __name__ == "__main__":
    sys.exit(main())
