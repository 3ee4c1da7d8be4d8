"""A server in a process of its own, and clients that ask it over real connections."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]
START = 300.0
"""Seconds that a server is given to load its model, on a busy machine."""


class Reply(NamedTuple):
    status: int
    headers: HTTPMessage
    body: str


class Asked(NamedTuple):
    """One request: when it was sent and answered, in seconds since the epoch."""

    prompt: str
    began: float
    ended: float
    reply: Reply

    @property
    def text(self) -> str:
        answer: str = json.loads(self.reply.body)["text"]
        return answer


@dataclass
class LiveServer:
    """Where the server listens, and what can be asked of it."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    def said(self) -> str:
        """Return what the server has printed by now."""
        return self.log.read_text()

    def wait_until_it_listens(self) -> None:
        ends = time.monotonic() + START
        while time.monotonic() < ends and self.process.poll() is None:
            found = re.search(r"running on http://127\.0\.0\.1:(\d+)", self.said())
            if found:
                self.port = int(found[1])
                return
            time.sleep(0.1)
        raise AssertionError(f"the server did not start:\n{self.said()}")

    def send(self, method: str, path: str, body: object = None) -> Reply:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"content-type": "application/json"})
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.send("GET", path)

    def complete(self, prompt: str, tokens: int) -> Asked:
        began = time.time()
        reply = self.send("POST", "/v1/completions", {"prompt": prompt, "max_tokens": tokens})
        return Asked(prompt, began, time.time(), reply)

    def flip(self, parameter: str, elements: Sequence[int], mask: int) -> float:
        """Turn bits over in live memory; return when that was done."""
        body = {"parameter": parameter, "elements": list(elements), "mask": mask}
        reply = self.send("POST", "/test/flip", body)
        assert reply.status == 200, reply
        return float(reply.body)

    def incidents(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.get("/test/incidents").body)
        return found

    def parameters(self) -> dict[str, int]:
        """Return the number of elements of each parameter."""
        sizes: dict[str, int] = json.loads(self.get("/test/parameters").body)
        return sizes


@dataclass
class Clients:
    """Threads that ask the same prompts again and again until they are stopped."""

    server: LiveServer
    prompts: Sequence[str]
    tokens: int
    asked: list[Asked] = field(default_factory=list)
    errors: list[OSError] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def _run(self, turn: int) -> None:
        while not self._stop.is_set():
            prompt = self.prompts[turn % len(self.prompts)]
            turn += 1
            try:
                self.asked.append(self.server.complete(prompt, self.tokens))
            except OSError as error:
                self.errors.append(error)

    @contextmanager
    def running(self, count: int) -> Iterator[None]:
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


@contextmanager
def started(folder: Path, *arguments: str | Path) -> Iterator[LiveServer]:
    """Run the injectable example server on a free port, and end it as an orchestrator does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "tests.integrations.serving.injectable"]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )
    server = LiveServer(process, log)
    try:
        server.wait_until_it_listens()
        yield server
    finally:
        process.terminate()
        process.wait(60)
