"""Options that several commands share, and what their values mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import click

from weightguard_cli.formats import FORMATS

SEVERITIES = ("info", "warning", "error", "critical")
MAX_THREADS = 1024

Copies: TypeAlias = tuple[tuple[str, Path], ...]
"""Further formats of a report, and the file of each."""

Command = TypeVar("Command", bound=Callable[..., Any])


def parse_codes(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Return all codes of a repeatable option whose values are lists separated by commas."""
    codes = tuple(code.strip().upper() for value in values for code in value.split(","))
    if not all(codes):
        raise click.BadParameter("give codes or their beginnings, such as WG2,WG101.")
    return codes


class NamedPath(click.Path):
    """A path that names something: an empty one, of an unset variable, would be the folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """See click.ParamType."""
        if value == "":
            self.fail("the path is empty.", parameter, context)
        return super().convert(value, parameter, context)


CHECKPOINT = NamedPath()
MANIFEST = NamedPath()


def threads_option(command: Command) -> Command:
    """Add ``--threads``."""
    return click.option(
        "--threads",
        type=click.IntRange(1, MAX_THREADS),
        help="Threads to read and check with; all cores by default.",
    )(command)


def format_option(command: Command) -> Command:
    """Add ``--format``, passed on as ``output_format``."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Text for people, JSON for programs.",
    )(command)


def output_option(command: Command) -> Command:
    """Add ``-o``."""
    return click.option(
        "-o",
        "--output",
        type=NamedPath(),
        metavar="FILE",
        help="Write the report to FILE, all of it or nothing.",
    )(command)


def _parse_copies(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> Copies:
    copies = []
    for value in values:
        name, _, file = value.partition("=")
        if name not in FORMATS or not file:
            raise click.BadParameter(
                f"{value!r} is no FORMAT=FILE; formats are {', '.join(FORMATS)}."
            )
        copies.append((name, Path(file)))
    return tuple(copies)


def report_format_options(command: Command) -> Command:
    """Add the ``--format`` and ``--report`` of commands that end with a report."""
    command = click.option(
        "--report",
        "copies",
        multiple=True,
        callback=_parse_copies,
        metavar="FORMAT=FILE",
        help="Also write the report in this format; repeatable.",
    )(command)
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(FORMATS),
        default="text",
        show_default=True,
        help="text and html for people, json for programs, sarif for code scanning, junit for "
        "test reports, markdown for job summaries.",
    )(command)


def report_options(command: Command) -> Command:
    """Add what every command that ends with a report takes."""
    command = report_format_options(output_option(command))
    return click.option(
        "--fail-on",
        type=click.Choice(SEVERITIES),
        default="error",
        show_default=True,
        help="Least severity that makes the exit status 1.",
    )(command)
