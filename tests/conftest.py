"""Shared fixtures: counts that prove a claim are printed at the end of the run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import hypothesis
import pytest

# read when torch is imported: spinning threads crawl where anything else runs beside the tests
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# a shell that starts the tests in the background ignores interrupts, and so would every program
# that they start to be interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)

# how long an example takes says how busy the machine is
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

CLAIM = "claim"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put groups first: one process runs all tests of a group, and must not end long after all."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture
def claim(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that puts one line into the summary under "measured claims"."""
    # properties of a test's report, since tests run in other processes than the summary's
    return lambda line: request.node.user_properties.append((CLAIM, line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    claims = [
        line
        for report in reports
        if report.when == "call"
        for name, line in report.user_properties
        if name == CLAIM
    ]
    if claims:
        terminalreporter.section("measured claims")
        for line in claims:
            terminalreporter.write_line(line)
