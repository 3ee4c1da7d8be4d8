"""``weightguard repair``: make a damaged checkpoint the attested one again."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightguard_cli.options import (
    CHECKPOINT,
    MANIFEST,
    NamedPath,
    report_format_option,
    threads_option,
)

if TYPE_CHECKING:
    from weightguard.repair import RepairOutcome


_STANDS_FOR_FOLDER = re.compile(r"\.index\.json$|-\d{5}-of-\d{5}\.gguf$")


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.argument("manifest", type=MANIFEST)
@click.option(
    "--golden",
    metavar="DIR|FILE|URL",
    help="Another copy of the same model; only blocks that are lost here are read of it.",
)
@click.option(
    "-o",
    "--output",
    type=NamedPath(),
    metavar="OUT",
    help="The checkpoint to write; by default NAME.repaired beside PATH.",
)
@click.option("--in-place", is_flag=True, help="Write into PATH itself, from a journal.")
@click.option("--no-parity", is_flag=True, help="Go without the manifest's parity.")
@threads_option
@report_format_option
def repair(
    *,
    path: Path,
    manifest: Path,
    golden: str | None,
    output: Path | None,
    in_place: bool,
    no_parity: bool,
    threads: int | None,
    output_format: str,
) -> int:
    """Restore the checkpoint at PATH to what MANIFEST attests.

    Tried in this order: row residues (one changed element in each row), parity where the manifest
    was written with --parity (lost blocks, headers, cut-off ends), and the golden copy. A tensor
    is only changed when its digest is the manifest's afterwards.

    A new checkpoint is written, whole or not at all. --in-place writes a journal first: when it
    is interrupted, run it again.

    Exit status: 0 all healed and verified, 1 damage remains, 2 could not complete.
    """
    from weightguard import Manifest
    from weightguard import repair as work
    from weightguard_cli.notice import tell_slow_scan
    from weightguard_cli.output import deliver
    from weightguard_cli.progress import ProgressBar
    from weightguard_cli.status import CLEAN, FINDINGS, INCOMPLETE

    if in_place and output is not None:
        raise click.UsageError("give -o or --in-place, not both.")
    tell_slow_scan()
    with Manifest.read(manifest) as expected, ProgressBar("repair") as progress:
        means = work.Means(golden, not no_parity, threads, progress)
        if in_place:
            outcome = work.repair_in_place(path, expected, means)
        else:
            outcome = work.repair(path, expected, output or repaired_name(path), means)
        text = _told(outcome, expected.document.weights, output_format)
    deliver(text, None)
    if not outcome.report.complete:
        return INCOMPLETE
    return CLEAN if outcome.healed else FINDINGS


def _told(outcome: RepairOutcome, weights: str, output_format: str) -> str:
    """Return the outcome, or in formats that know only findings what remains of the damage."""
    from weightguard_cli.formats import render
    from weightguard_cli.json_output import json_text
    from weightguard_cli.presentation import Presentation, folder_below
    from weightguard_cli.repair_text import repair_text
    from weightguard_cli.style import Style
    from weightguard_cli.verdict import Scope

    if output_format == "json":
        return json_text(outcome)
    report = outcome.report
    style = Style.of(sys.stdout) if output_format == "text" else Style()
    folder = folder_below(report.checkpoint, Path.cwd())
    presentation = Presentation("repair", Scope(True, (), weights), folder=folder, style=style)
    if output_format == "text":
        return repair_text(outcome, presentation)
    return render(output_format, report, presentation)


def repaired_name(path: Path) -> Path:
    """Return ``NAME.repaired`` for a folder, ``NAME.repaired.SUFFIX`` for a file.

    An index, or a part of a split model, stands for its folder.
    """
    path = path.absolute()
    if path.is_dir() or _STANDS_FOR_FOLDER.search(path.name):
        folder = (path if path.is_dir() else path.parent).resolve()
        return folder.with_name(folder.name + ".repaired")
    return path.with_name(f"{path.stem}.repaired{path.suffix}")
