"""``weightguard repair``: make a damaged checkpoint the attested one again."""

from __future__ import annotations

import re
from pathlib import Path

import click

from weightguard_cli.options import (
    CHECKPOINT,
    MANIFEST,
    Copies,
    NamedPath,
    report_format_options,
    threads_option,
)

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
@report_format_options
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
    copies: Copies,
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
    from weightguard_cli.conclude import Delivery, present, publish
    from weightguard_cli.notice import tell_slow_scan
    from weightguard_cli.progress import ProgressBar
    from weightguard_cli.repair_account import repair_account
    from weightguard_cli.status import CLEAN, FINDINGS, INCOMPLETE
    from weightguard_cli.verdict import Scope

    if in_place and output is not None:
        raise click.UsageError("give -o or --in-place, not both.")
    delivery = Delivery(output_format, None, "error", copies)
    delivery.check(path, manifest)
    tell_slow_scan()
    with Manifest.read(manifest) as expected, ProgressBar("repair") as progress:
        means = work.Means(golden, not no_parity, threads, progress)
        if in_place:
            outcome = work.repair_in_place(path, expected, means)
        else:
            outcome = work.repair(path, expected, output or repaired_name(path), means)
        scope = Scope(True, (), expected.document.weights)
    account = repair_account(outcome, scope)
    publish(outcome.report, present("repair", outcome.report, scope, delivery, account), delivery)
    if not outcome.report.complete and outcome.shortfall is None:
        return INCOMPLETE
    return CLEAN if outcome.healed else FINDINGS


def repaired_name(path: Path) -> Path:
    """Return ``NAME.repaired`` for a folder, ``NAME.repaired.SUFFIX`` for a file.

    An index, or a part of a split model, stands for its folder.
    """
    path = path.absolute()
    if path.is_dir() or _STANDS_FOR_FOLDER.search(path.name):
        folder = (path if path.is_dir() else path.parent).resolve()
        return folder.with_name(folder.name + ".repaired")
    return path.with_name(f"{path.stem}.repaired{path.suffix}")
