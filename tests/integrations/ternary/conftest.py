"""Every test here can ask for each instruction set and for one or two threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from weightguard_integrations import ternary


@pytest.fixture(params=ternary.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = ternary.isa()
    ternary.select_isa(request.param)
    yield request.param
    ternary.select_isa(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = ternary.num_threads()
    ternary.set_num_threads(request.param)
    yield request.param
    ternary.set_num_threads(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
