"""From a core call to an exit status: run it, time it, deliver its report in every format asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click

from weightguard.catalogue import Severity
from weightguard.errors import WeightguardError
from weightguard.finding import Report
from weightguard.progress import Progress
from weightguard.units import byte_size, listed
from weightguard_cli.account import Account
from weightguard_cli.formats import render
from weightguard_cli.formats.text import verdict_line
from weightguard_cli.notice import tell_slow_scan
from weightguard_cli.options import Copies
from weightguard_cli.output import STANDARD_OUTPUT, deliver
from weightguard_cli.presentation import Presentation, folder_below
from weightguard_cli.progress import ProgressBar
from weightguard_cli.style import Style, stderr_is_terminal
from weightguard_cli.target import check_report_target
from weightguard_cli.verdict import Scope


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a report goes out: its format, its file (None is standard output), and what fails.

    ``copies`` are further formats and files of the same report. Raises UsageError where two would
    go to one place.
    """

    output_format: str
    output: Path | None
    fail_on: str
    copies: Copies = ()

    def __post_init__(self) -> None:
        seen = set()
        for _, target in self.targets:
            place = STANDARD_OUTPUT if target is None else target
            place = place if place == STANDARD_OUTPUT else place.resolve()
            if place in seen:
                named = "standard output" if place == STANDARD_OUTPUT else repr(str(target))
                raise click.UsageError(f"two reports would go to {named}: name a file for each.")
            seen.add(place)

    @property
    def targets(self) -> tuple[tuple[str, Path | None], ...]:
        """Every format and where it goes."""
        return ((self.output_format, self.output), *self.copies)

    def check(self, checkpoint: Path, *inputs: Path) -> None:
        """Raise WeightguardError where a report would replace what is to be checked."""
        for _, target in self.targets:
            check_report_target(target, checkpoint, *inputs)


def conclude(
    task: str, examine: Callable[[Progress], Report], scope: Scope, delivery: Delivery
) -> int:
    """Run ``examine`` under a progress bar, deliver its report and return the exit status."""
    tell_slow_scan()
    started = time.perf_counter()
    with ProgressBar(task) as progress:
        report = examine(progress)
    seconds = time.perf_counter() - started
    presentation = present(task, report, scope, delivery)
    publish(report, presentation, delivery)
    if stderr_is_terminal():
        _tell_terminal(report, presentation, delivery, seconds)
    return presentation.status(report)


def present(
    task: str, report: Report, scope: Scope, delivery: Delivery, account: Account | None = None
) -> Presentation:
    """Return how a report is to be told."""
    fail_on = Severity[delivery.fail_on.upper()]
    return Presentation(
        task, scope, fail_on, folder_below(report.checkpoint, Path.cwd()), account=account
    )


def publish(report: Report, presentation: Presentation, delivery: Delivery) -> None:
    """Write the report in every format that is asked for.

    One that fails keeps none of the others back: then WeightguardError names it in the end.
    """
    failures: list[tuple[str, Exception]] = []
    for name, target in delivery.targets:
        to_stdout = target in (None, STANDARD_OUTPUT)
        style = Style.of(sys.stdout) if to_stdout else Style()
        try:
            deliver(render(name, report, replace(presentation, style=style)), target)
        except Exception as error:  # noqa: BLE001 - raised again when the others are written
            failures.append((f"{name} report for {_named(target)}", error))
    if not failures:
        return
    if len(delivery.targets) == 1:
        raise failures[0][1]
    told = [f"the {what} ({type(error).__name__}: {error})" for what, error in failures]
    written = "; the other reports are written" if len(failures) < len(delivery.targets) else ""
    raise WeightguardError(f"could not make {listed(told)}{written}.") from failures[0][1]


def _named(target: Path | None) -> str:
    return "standard output" if target in (None, STANDARD_OUTPUT) else repr(str(target))


def _tell_terminal(
    report: Report, presentation: Presentation, delivery: Delivery, seconds: float
) -> None:
    if delivery.output not in (None, STANDARD_OUTPUT):
        click.echo(verdict_line(report, presentation, Style.of(sys.stderr)), err=True)
    checked = report.coverage.bytes_checked
    rate = byte_size(checked / seconds) if seconds > 0 else "-"
    click.echo(f"{byte_size(checked)} in {seconds:.2f} s, {rate}/s", err=True)
