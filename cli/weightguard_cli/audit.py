"""``weightguard audit``: is this checkpoint sound, and is it the one of the manifest?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import click

from weightguard_cli.options import (
    CHECKPOINT,
    MANIFEST,
    Copies,
    parse_codes,
    report_options,
    threads_option,
)


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.option("--manifest", type=MANIFEST, metavar="M", help="Also compare with this manifest.")
@click.option(
    "--select",
    callback=parse_codes,
    multiple=True,
    metavar="CODES",
    help="Only these rules; codes or prefixes, such as WG2,WG101.",
)
@click.option(
    "--ignore", callback=parse_codes, multiple=True, metavar="CODES", help="All but these rules."
)
@click.option(
    "--file-digests",
    is_flag=True,
    help="Also take SHA-256 of whole files and compare those that are known.",
)
@threads_option
@report_options
def audit(
    *,
    path: Path,
    manifest: Path | None,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    file_digests: bool,
    threads: int | None,
    fail_on: str,
    output_format: str,
    output: Path | None,
    copies: Copies,
) -> int:
    """Check the checkpoint at PATH: a file, or a folder of shards.

    Finds unsafe and damaged files, NaN and infinities, dead or absurd weights, and with
    --manifest every difference from the weights that were attested.

    Exit status: 0 nothing at or above --fail-on, 1 findings, 2 could not complete.
    """
    from weightguard import Manifest
    from weightguard import audit as examine
    from weightguard_cli.conclude import Delivery, conclude
    from weightguard_cli.verdict import Scope

    delivery = Delivery(output_format, output, fail_on, copies)
    delivery.check(path, *([manifest] if manifest else []))
    unchecked = tuple(_unchecked(manifest is not None, select, ignore, file_digests))
    with Manifest.read(manifest) if manifest else nullcontext() as expected:
        return conclude(
            "audit",
            lambda progress: examine(
                path,
                manifest=expected,
                select=select,
                ignore=ignore,
                file_digests=file_digests,
                threads=threads,
                progress=progress,
            ),
            Scope(
                expected is not None and not select and not ignore,
                unchecked,
                None if expected is None else expected.document.weights,
            ),
            delivery,
        )


def _unchecked(
    manifest: bool, select: tuple[str, ...], ignore: tuple[str, ...], file_digests: bool
) -> Iterator[str]:
    if not manifest:
        yield "equality with trusted weights (no manifest was given)"
    if select:
        yield f"rules other than {', '.join(select)} (--select)"
    if ignore:
        yield f"rules {', '.join(ignore)} (--ignore)"
    if not file_digests:
        yield "digests of whole files (--file-digests)"
