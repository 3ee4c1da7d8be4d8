"""``weightguard verify``: are these exactly the weights that the manifest attests?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from weightguard_cli.options import CHECKPOINT, MANIFEST, Copies, report_options, threads_option
from weightguard_cli.trust import Trust, trust_options

HEALTH = "the health of the weights (`weightguard audit` does)"


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.argument("manifest", type=MANIFEST)
@trust_options
@threads_option
@report_options
def verify(
    *,
    path: Path,
    manifest: Path,
    signature: Path | None,
    threads: int | None,
    fail_on: str,
    output_format: str,
    output: Path | None,
    copies: Copies,
    **trust: Any,
) -> int:
    """Compare the checkpoint at PATH with MANIFEST, tensor by tensor.

    Missing, extra, reshaped, retyped, renamed and changed tensors are findings; a change is
    located down to the element, with its old and new value, where the row residues allow.

    With --public-key, --certificate-chain or --identity, the folder at PATH must also be signed
    by that signer: its signature has to be genuine, to list MANIFEST and its sidecar, and to
    list exactly the files that are there.

    Exit status: 0 nothing at or above --fail-on, 1 differences, 2 could not complete.
    """
    from weightguard import Manifest
    from weightguard import verify as examine
    from weightguard.signing import verify_signed
    from weightguard_cli.conclude import Delivery, conclude
    from weightguard_cli.verdict import Scope

    delivery = Delivery(output_format, output, fail_on, copies)
    delivery.check(path, manifest)
    signer = Trust(**trust).signer()
    if signer is not None:
        return conclude(
            "verify",
            lambda progress: verify_signed(
                path, manifest, signer, signature=signature, threads=threads, progress=progress
            ),
            Scope(True, (HEALTH,), signed=True),
            delivery,
        )
    if signature is not None:
        raise click.UsageError("--signature needs --public-key or another option of whom to trust.")
    with Manifest.read(manifest) as expected:
        unchecked = tuple(_unchecked(bool(expected.document.files)))
        return conclude(
            "verify",
            lambda progress: examine(path, expected, threads=threads, progress=progress),
            Scope(True, unchecked, expected.document.weights),
            delivery,
        )


def _unchecked(file_digests: bool) -> Iterator[str]:
    yield HEALTH
    yield "who wrote the manifest (give --public-key to check a signature)"
    if not file_digests:
        yield "headers and metadata (the manifest holds no file digests)"
