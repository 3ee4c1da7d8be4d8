"""``weightguard manifest``: write down what a checkpoint is, to hold it to that later."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click

from weightguard_cli.options import CHECKPOINT, MANIFEST, threads_option


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.option(
    "-o",
    "--output",
    type=MANIFEST,
    required=True,
    metavar="M",
    help="The manifest to write, by custom NAME.weightguard.json; its sidecar goes beside it.",
)
@click.option(
    "--digest",
    type=click.Choice(["blake3", "sha256"]),
    default="blake3",
    show_default=True,
    help="Algorithm of the tensor digests.",
)
@click.option(
    "--file-digests", is_flag=True, help="Also record SHA-256 of whole files, as model hubs do."
)
@click.option(
    "--parity",
    is_flag=True,
    help="Also write what `weightguard repair` restores lost blocks from: 3.1 % of the size.",
)
@threads_option
def manifest(
    path: Path, output: Path, digest: str, file_digests: bool, parity: bool, threads: int | None
) -> int:
    """Write the manifest of the checkpoint at PATH.

    It is the same for any sharding and number of threads. A checkpoint whose files are
    already broken is refused: what is known to be damaged is not attested.

    Exit status: 0 written, 2 could not complete.
    """
    from weightguard import fingerprint
    from weightguard.units import byte_size, counted
    from weightguard_cli.escape import escape_name
    from weightguard_cli.notice import tell_slow_scan
    from weightguard_cli.output import deliver
    from weightguard_cli.progress import ProgressBar
    from weightguard_cli.status import CLEAN
    from weightguard_cli.target import check_manifest_target

    check_manifest_target(output, path)
    tell_slow_scan()
    algorithm = cast("Literal['blake3', 'sha256']", digest)
    with ProgressBar("manifest") as progress:
        made = fingerprint(
            path,
            digest=algorithm,
            file_digests=file_digests,
            parity=parity,
            threads=threads,
            progress=progress,
        )
    with made:
        sidecar = made.write(output)
        record = made.document.parity
        extra = f", with {byte_size(record.size)} of parity" if record else ""
        tensors, weights = counted(len(made.document.tensors), "tensor"), made.document.weights
    deliver(
        f"Wrote {escape_name(str(output))} and {escape_name(sidecar.name)} beside it: "
        f"{tensors}{extra}.\n"
        f"Weights: {weights} (keep this line to recognise the manifest by)\n",
        None,
    )
    return CLEAN
