"""Audit and verification: one pass over a checkpoint, every rule, one report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.errors import CheckpointError
from weightguard.examination import Examination, report_of
from weightguard.finding import Report
from weightguard.manifest import Manifest
from weightguard.progress import Progress
from weightguard.rules.selection import COMPARING, Codes, Selection

ManifestLike = Manifest | str | os.PathLike[str]


def audit(
    path: str | os.PathLike[str],
    *,
    manifest: ManifestLike | None = None,
    select: Codes = (),
    ignore: Codes = (),
    file_digests: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Return what every selected rule finds in the checkpoint at ``path``.

    With a manifest, equality with it is checked in the same pass. ``file_digests`` also hashes
    whole files and compares those that are named by their digest or listed in the manifest.
    A checkpoint that cannot be read gives a report that is not complete. Raises ManifestError
    for an unusable manifest and WeightguardError for an unknown rule code, or where every rule
    that is left needs a manifest and none is given.
    """
    selection = Selection.of(select, ignore)
    if manifest is None:
        selection.require_other_than_comparing()
    with opened_manifest(manifest) as recorded:
        return _examine(Path(path), recorded, selection, file_digests, threads, progress)


def verify(
    path: str | os.PathLike[str],
    manifest: ManifestLike,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Return how the checkpoint at ``path`` differs from a manifest: WG1xx, WG4xx, WG305, WG306.

    File digests are compared when the manifest holds them. Raises ManifestError.
    """
    selection = Selection.of(["WG1", *COMPARING])
    with opened_manifest(manifest) as recorded:
        assert recorded is not None
        whole_files = bool(recorded.document.files)
        return _examine(Path(path), recorded, selection, whole_files, threads, progress)


def verify_opened(
    checkpoint: Checkpoint, manifest: Manifest | None, *, threads: int | None = None
) -> Report:
    """Return how a checkpoint that is open, and stays so, differs from a manifest, as ``verify``.

    Without a manifest, what its structure and its own checksums tell. Always through the
    descriptors that it holds: what is loaded from them afterwards is what was verified.
    """
    selection = Selection.of(["WG1", *COMPARING] if manifest else ["WG1"])
    whole_files = manifest is not None and bool(manifest.document.files)
    return _examine_opened(
        checkpoint.path, checkpoint, manifest, selection, whole_files, threads, None
    )


@contextlib.contextmanager
def opened_manifest(manifest: ManifestLike | None) -> Iterator[Manifest | None]:
    """Yield a manifest, opened and closed where it is given by its path."""
    if manifest is None or isinstance(manifest, Manifest):
        yield manifest
        return
    with Manifest.read(manifest) as opened:
        yield opened


def _examine(
    path: Path,
    manifest: Manifest | None,
    selection: Selection,
    whole_files: bool,
    threads: int | None,
    progress: Progress | None,
) -> Report:
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        return report_of(path, None, [error.finding], {}, complete=False)
    with checkpoint:
        return _examine_opened(
            path, checkpoint, manifest, selection, whole_files, threads, progress
        )


def _examine_opened(
    path: Path,
    checkpoint: Checkpoint,
    manifest: Manifest | None,
    selection: Selection,
    whole_files: bool,
    threads: int | None,
    progress: Progress | None,
) -> Report:
    examination = Examination(checkpoint, manifest, selection, whole_files, threads)
    try:
        findings = examination.run(progress)
    except CheckpointError as error:
        found = [*selection.keep(checkpoint.findings), error.finding]
        return report_of(path, checkpoint, found, examination.ranges, complete=False)
    report = report_of(path, checkpoint, findings, examination.ranges, complete=True)
    return msgspec.structs.replace(report, salience=examination.salience)
