"""``weightguard diff``: what became of each tensor between two checkpoints?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightguard_cli.options import (
    CHECKPOINT,
    SEVERITIES,
    format_option,
    output_option,
    threads_option,
)

if TYPE_CHECKING:
    from weightguard.drift import DriftLimits


@click.command()
@click.argument("base", type=CHECKPOINT)
@click.argument("new", type=CHECKPOINT)
@click.option(
    "--max-change", type=click.FloatRange(0), metavar="R", help="Limit of the relative change."
)
@click.option("--changed", multiple=True, metavar="GLOB", help="Only these tensors may change.")
@click.option("--replaced", multiple=True, metavar="GLOB", help="These may be replaced.")
@click.option("--added", multiple=True, metavar="GLOB", help="These may be added.")
@click.option("--removed", multiple=True, metavar="GLOB", help="These may be removed.")
@click.option("--all", "show_all", is_flag=True, help="Also list tensors that did not change.")
@click.option(
    "--fail-on",
    type=click.Choice(SEVERITIES),
    default="error",
    show_default=True,
    help="Least severity of what the limits find that makes the exit status 1.",
)
@threads_option
@format_option
@output_option
def diff(
    *,
    base: Path,
    new: Path,
    max_change: float | None,
    changed: tuple[str, ...],
    replaced: tuple[str, ...],
    added: tuple[str, ...],
    removed: tuple[str, ...],
    show_all: bool,
    fail_on: str,
    threads: int | None,
    output_format: str,
    output: Path | None,
) -> int:
    """Compare the checkpoints BASE and NEW, value by value.

    Each tensor is unchanged, cast, fine-tuned, replaced, reshaped, added or removed; casts are
    compared by value. Either may be a manifest: then digests and statistics are compared.
    Differences are no findings unless a limit is given.

    Exit status: 0 compared, 1 a limit is exceeded, 2 could not complete.
    """
    from weightguard.catalogue import Severity
    from weightguard.diff import diff as compare
    from weightguard_cli.diff_text import diff_text
    from weightguard_cli.json_output import json_text
    from weightguard_cli.notice import tell_slow_scan
    from weightguard_cli.output import STANDARD_OUTPUT, deliver
    from weightguard_cli.progress import ProgressBar
    from weightguard_cli.status import CLEAN, FINDINGS
    from weightguard_cli.style import Style
    from weightguard_cli.target import check_report_target

    check_report_target(output, base, new)
    check_report_target(output, new, base)
    tell_slow_scan()
    limits = _limits(max_change, changed, replaced, added, removed)
    with ProgressBar("diff") as progress:
        found = compare(base, new, limits=limits, threads=threads, progress=progress)
    style = Style.of(sys.stdout) if output in (None, STANDARD_OUTPUT) else Style()
    deliver(json_text(found) if output_format == "json" else diff_text(found, style, show_all),
            output)  # fmt: skip
    failing = [f for f in found.findings if f.level >= Severity[fail_on.upper()]]
    return FINDINGS if failing else CLEAN


def _limits(
    max_change: float | None,
    changed: tuple[str, ...],
    replaced: tuple[str, ...],
    added: tuple[str, ...],
    removed: tuple[str, ...],
) -> DriftLimits | None:
    """Return the limits, or None where no option sets one."""
    from weightguard.drift import DriftLimits

    if max_change is None and not (changed or replaced or added or removed):
        return None
    return DriftLimits(max_change, changed or ("*",), replaced, added, removed)
