"""``weightguard verify``: are these exactly the weights that the manifest attests?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from weightguard_cli.options import CHECKPOINT, MANIFEST, report_options, threads_option


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.argument("manifest", type=MANIFEST)
@threads_option
@report_options
def verify(
    *,
    path: Path,
    manifest: Path,
    threads: int | None,
    fail_on: str,
    output_format: str,
    output: Path | None,
) -> int:
    """Compare the checkpoint at PATH with MANIFEST, tensor by tensor.

    Missing, extra, reshaped, retyped, renamed and changed tensors are findings; a change is
    located down to the element, with its old and new value, where the row residues allow.

    Exit status: 0 nothing at or above --fail-on, 1 differences, 2 could not complete.
    """
    from weightguard import Manifest
    from weightguard import verify as examine
    from weightguard_cli.conclude import Delivery, conclude
    from weightguard_cli.target import check_report_target
    from weightguard_cli.verdict import Scope

    check_report_target(output, path, manifest)
    with Manifest.read(manifest) as expected:
        unchecked = tuple(_unchecked(bool(expected.document.files)))
        return conclude(
            "verify",
            lambda progress: examine(path, expected, threads=threads, progress=progress),
            Scope(True, unchecked, expected.document.weights),
            Delivery(output_format, output, fail_on),
        )


def _unchecked(file_digests: bool) -> Iterator[str]:
    yield "the health of the weights (`weightguard audit` does)"
    yield "who wrote the manifest (it is not signed)"
    if not file_digests:
        yield "headers and metadata (the manifest holds no file digests)"
