"""A signature over a manifest, and the manifest over the weights: the whole chain in one report."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from weightguard.audit import verify
from weightguard.errors import ManifestError
from weightguard.finding import Coverage, Finding, Report, ordered
from weightguard.manifest import Manifest
from weightguard.progress import Progress
from weightguard.signing.parties import Trusted
from weightguard.signing.verification import verify_signature


def verify_signed(
    path: str | os.PathLike[str],
    manifest: str | os.PathLike[str],
    signer: Trusted,
    *,
    signature: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Return ``verify``'s report with the findings of ``verify_signature`` added.

    The signature must cover the manifest and its sidecar. ``path`` is the signed folder, or a
    file or index in it. Where a manifest that fails its signature cannot be read either, the
    report is not complete. Raises ManifestError and WeightguardError.
    """
    target, document = Path(path), Path(manifest)
    folder = target if target.is_dir() else target.parent
    must_cover, unreadable = [document], None
    try:
        expected = Manifest.read(document)
    except ManifestError as error:
        unreadable = error
    else:
        must_cover.append(document.parent / expected.document.sidecar.name)
    try:
        findings = verify_signature(
            folder,
            signer,
            signature=signature,
            must_cover=must_cover,
            threads=threads,
            progress=progress,
        )
        if unreadable is not None:
            return _stopped(target, findings, unreadable)
        report = verify(target, expected, threads=threads, progress=progress)
    finally:
        if unreadable is None:
            expected.close()
    return msgspec.structs.replace(report, findings=ordered([*report.findings, *findings]))


def _stopped(path: Path, findings: tuple[Finding, ...], error: ManifestError) -> Report:
    if not findings:
        raise error
    return Report(str(path), "unknown", False, findings, Coverage(0, 0, 0, 0))
