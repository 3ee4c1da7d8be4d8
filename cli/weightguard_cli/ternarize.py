"""``weightguard ternarize``: packed ternary weights with their check rows, attested."""

from __future__ import annotations

from pathlib import Path

import click

from weightguard_cli.options import CHECKPOINT, MANIFEST, NamedPath


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.option(
    "-o", "--output", type=NamedPath(), required=True, metavar="OUT", help="The folder to make."
)
@click.option(
    "-m", "--manifest", type=MANIFEST, metavar="M", help="Pack only what this manifest attests."
)
@click.option(
    "--keep-super-weights",
    is_flag=True,
    help="Keep the manifest's confirmed super weights in full precision.",
)
@click.option(
    "--layers",
    default="*_proj.weight",
    show_default=True,
    metavar="PATTERN",
    help="Names of the matrices to pack.",
)
def ternarize(
    path: Path, output: Path, manifest: Path | None, keep_super_weights: bool, layers: str
) -> int:
    """Quantise matrices of the checkpoint at PATH to -1, 0 and 1, and pack them.

    By the mean magnitude of each matrix, as BitNet b1.58 does. OUT gets the packed weights with
    their check rows, everything else unchanged, and a manifest. A model that was not trained to be
    ternary loses much of what it knows.

    Exit status: 0 written, 2 could not complete; then there is no OUT.
    """
    from contextlib import ExitStack

    from weightguard import Manifest, WeightguardError
    from weightguard.units import counted
    from weightguard_cli.escape import escape_name
    from weightguard_cli.output import deliver
    from weightguard_cli.progress import ProgressBar
    from weightguard_cli.status import CLEAN

    try:
        from weightguard_integrations.ternary.ternarize import ternarize as run
    except ImportError as error:
        raise WeightguardError(str(error)) from error

    with ExitStack() as stack:
        given = stack.enter_context(Manifest.read(manifest)) if manifest else None
        progress = stack.enter_context(ProgressBar("ternarize"))
        made = run(
            path,
            output,
            layers=layers,
            manifest=given,
            keep_super_weights=keep_super_weights,
            progress=progress,
        )
    deliver(
        f"Wrote {escape_name(str(output))}: {counted(len(made.layers), 'packed layer')}, "
        f"{counted(len(made.kept), 'weight')} kept in full precision, "
        f"{made.bytes_before / 1e6:.1f} MB before, {made.bytes_after / 1e6:.1f} MB now.\n",
        None,
    )
    return CLEAN
