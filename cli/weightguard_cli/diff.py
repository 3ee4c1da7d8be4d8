"""``weightguard diff``: what became of each tensor between two checkpoints?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightguard_cli.options import (
    CHECKPOINT,
    Copies,
    report_options,
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
@threads_option
@report_options
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
    copies: Copies,
) -> int:
    """Compare the checkpoints BASE and NEW, value by value.

    Each tensor is unchanged, cast, fine-tuned, replaced, reshaped, added or removed; casts are
    compared by value. Either may be a manifest: then digests and statistics are compared.
    Differences are no findings unless a limit is given.

    Exit status: 0 compared, 1 a limit is exceeded, 2 could not complete.
    """
    from weightguard.catalogue import Severity
    from weightguard.diff import diff as compare
    from weightguard_cli.conclude import Delivery, present, publish
    from weightguard_cli.diff_account import diff_account
    from weightguard_cli.notice import tell_slow_scan
    from weightguard_cli.progress import ProgressBar
    from weightguard_cli.verdict import Scope

    delivery = Delivery(output_format, output, fail_on, copies)
    delivery.check(base, new)
    delivery.check(new, base)
    tell_slow_scan()
    limits = _limits(max_change, changed, replaced, added, removed)
    with ProgressBar("diff") as progress:
        found = compare(base, new, limits=limits, threads=threads, progress=progress)
    account = diff_account(found, Severity[fail_on.upper()], show_all=show_all)
    report = found.report()
    presentation = present("diff", report, Scope(False), delivery, account)
    publish(report, presentation, delivery)
    return presentation.status(report)


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
