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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse to run where each process would make what a group of tests is to share.

    pytest-xdist 3.8 groups nothing under pytest 9.2, and says nothing of it.
    """
    grouped = [item for item in items if item.get_closest_marker("xdist_group")]
    if config.getoption("loadgroup", default=False) and any("@" not in i.nodeid for i in grouped):
        raise pytest.UsageError(
            "pytest-xdist does not group tests under this pytest: install the versions of "
            "constraints-dev.txt"
        )


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
