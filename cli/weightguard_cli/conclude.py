"""From a core call to an exit status: run it, time it, deliver its report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from weightguard.catalogue import Severity
from weightguard.finding import Report
from weightguard.progress import Progress
from weightguard.units import byte_size
from weightguard_cli.formats import render
from weightguard_cli.formats.text import verdict_line
from weightguard_cli.notice import tell_slow_scan
from weightguard_cli.output import STANDARD_OUTPUT, deliver
from weightguard_cli.presentation import Presentation, folder_below
from weightguard_cli.progress import ProgressBar
from weightguard_cli.style import Style, stderr_is_terminal
from weightguard_cli.verdict import Scope


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a report goes out: its format, its file (None is standard output), and what fails.

    ``copies`` are further formats and files of the same report.
    """

    output_format: str
    output: Path | None
    fail_on: str
    copies: tuple[tuple[str, Path], ...] = ()


def conclude(
    task: str, examine: Callable[[Progress], Report], scope: Scope, delivery: Delivery
) -> int:
    """Run ``examine`` under a progress bar, deliver its report and return the exit status."""
    tell_slow_scan()
    started = time.perf_counter()
    with ProgressBar(task) as progress:
        report = examine(progress)
    seconds = time.perf_counter() - started
    for name, target in ((delivery.output_format, delivery.output), *delivery.copies):
        presentation = _presentation(task, report, scope, delivery.fail_on, target)
        deliver(render(name, report, presentation), target)
    if stderr_is_terminal():
        _tell_terminal(report, scope, delivery, seconds)
    return presentation.status(report)


def _presentation(
    task: str, report: Report, scope: Scope, fail_on: str, target: Path | None
) -> Presentation:
    to_stdout = target in (None, STANDARD_OUTPUT)
    return Presentation(
        task,
        scope,
        Severity[fail_on.upper()],
        folder_below(report.checkpoint, Path.cwd()),
        Style.of(sys.stdout) if to_stdout else Style(),
    )


def _tell_terminal(report: Report, scope: Scope, delivery: Delivery, seconds: float) -> None:
    if delivery.output not in (None, STANDARD_OUTPUT):
        click.echo(verdict_line(report, scope, Style.of(sys.stderr)), err=True)
    checked = report.coverage.bytes_checked
    rate = byte_size(checked / seconds) if seconds > 0 else "-"
    click.echo(f"{byte_size(checked)} in {seconds:.2f} s, {rate}/s", err=True)
