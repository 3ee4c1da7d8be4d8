"""The suite of all adapters, on a sealed session and on one in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.conformance.subject import Subject
from tests.conformance.suite import AdapterConformance
from tests.integrations.onnxruntime.models import WIDTH, perceptron, saved
from weightguard.guard import Token
from weightguard_integrations.onnxruntime import GuardedSession
from weightguard_integrations.onnxruntime.memory import Memory


def one_thread() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


class SessionSubject:
    def __init__(self, session: GuardedSession):
        self.session = session
        self.adapter = session.adapter
        self.input = np.random.default_rng(3).standard_normal((4, WIDTH)).astype(np.float32)

    def run(self) -> bytes:
        return self.session.run(None, {"x": self.input})[0].tobytes()

    def poke(self, name: str, start: int, data: bytes) -> None:
        self.adapter.write(name, start, data)

    def rewrite(self, name: str, data: bytes) -> None:
        """Count a version, as onnxruntime would if it ever wrote weights: it does not."""
        memory: Memory = self.adapter.memory
        region = memory.regions[name]
        tensor = replace(region.tensor, token=following(region))
        written = {**memory.regions, name: replace(region, tensor=tensor)}
        self.adapter.memory = replace(memory, regions=written)
        self.poke(name, 0, data)


def following(region) -> Token:  # type: ignore[no-untyped-def]
    token = region.tensor.token
    return Token(token.storage, token.version + 1)


class TestSealedSession(AdapterConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        path = saved(perceptron(), tmp_path / "model")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = GuardedSession(
            path, options, mode="sealed", cache=tmp_path / "cache", canary_share=0, scrub=None
        )
        return SessionSubject(session)


class TestSessionInPlace(AdapterConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        path = saved(perceptron(), tmp_path / "model")
        session = GuardedSession(path, one_thread, mode="inplace", canary_share=0, scrub=None)
        return SessionSubject(session)
