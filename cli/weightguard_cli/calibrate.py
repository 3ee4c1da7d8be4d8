"""``weightguard calibrate``: run the model, and add what a sound one does to its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightguard_cli.options import CHECKPOINT, MANIFEST, NamedPath, format_option, threads_option

if TYPE_CHECKING:
    from weightguard.manifest import ManifestDocument


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.option(
    "-m",
    "--manifest",
    type=MANIFEST,
    required=True,
    metavar="M",
    help="The checkpoint's manifest; it is replaced by the calibrated one.",
)
@click.option(
    "--prompts",
    type=NamedPath(),
    metavar="FILE",
    help="Calibrate on these prompts: UTF-8, a text or a JSON array of token ids a line.",
)
@threads_option
@format_option
def calibrate(
    path: Path, manifest: Path, prompts: Path | None, threads: int | None, output_format: str
) -> int:
    """Run the model at PATH, a folder with config.json or a GGUF file, and learn from it.

    Confirms super weights by zeroing them, finds massive activations and their bands, counts
    false alarms on held-out prompts, and records a canary and a probe. It never downloads and
    never runs code of the checkpoint.

    The manifest's sidecar is replaced as well: a copy of the old manifest is whole only with a
    copy of the old sidecar.

    \b
    Needs: pip install 'weightguard-integrity[torch]'

    Exit status: 0 written, 2 could not complete; then the manifest is as it was.
    """
    from weightguard import Manifest
    from weightguard_cli.calibration_text import calibration_lines
    from weightguard_cli.escape import escape_name, guard_lines
    from weightguard_cli.json_output import json_text
    from weightguard_cli.output import deliver
    from weightguard_cli.progress import ProgressBar
    from weightguard_cli.status import CLEAN
    from weightguard_cli.target import check_target
    from weightguard_integrations.torch import calibrate as run

    check_target(manifest, path, *([prompts] if prompts else []))
    with (
        Manifest.read(manifest) as given,
        ProgressBar("calibrate", "steps") as progress,
        run(path, given, prompts=prompts, threads=threads, progress=progress) as made,
    ):
        made.write(manifest)
        document = made.document
    if output_format == "json":
        deliver(json_text(_calibration(document)), None)
    else:
        lines = [f"Calibrated {escape_name(str(manifest))}.", *calibration_lines(document)]
        deliver(guard_lines("\n".join(lines)) + "\n", None)
    return CLEAN


def _calibration(document: ManifestDocument) -> dict[str, Any]:
    return {
        "schema": "weightguard-calibration-v1",
        "weights": document.weights,
        "super_weights": document.salience.super_weights,
        "calibration": document.calibration,
    }
