"""repair(): find what is damaged, heal what can be proved, write it down, verify the result."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from weightguard.atomic import remove_abandoned
from weightguard.audit import verify_opened
from weightguard.catalogue import Severity
from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.unfinished import JOURNAL
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.manifest import Manifest
from weightguard.repair.folders import (
    refuse_target,
)
from weightguard.repair.inplace import (
    JournalMisfitError,
    NoRoomError,
    apply_journal,
    check_writable,
)
from weightguard.repair.journal import locked, remove_journal, write_journal
from weightguard.repair.outcome import RepairOutcome
from weightguard.repair.work import Means, Repair, said

_ALL = Means()
"""What the manifest itself offers, and no golden copy."""


def repair(
    path: str | os.PathLike[str],
    manifest: Manifest,
    output: str | os.PathLike[str],
    means: Means = _ALL,
) -> RepairOutcome:
    """Write the checkpoint at ``path``, healed, to ``output``, which must not be there.

    A folder becomes a folder with all that lies in it, a single file a file, and a file that names
    others (an index, a part of a split model) a folder with the files it is made of. Nothing is
    written where something is damaged and nothing can be healed. Raises WeightguardError where
    the job cannot be done: then nothing is at ``output``.
    """
    path, output = Path(path), Path(output)
    _require_there(path)
    refuse_target(output, path)
    with Repair(path, manifest, means, output) as work:
        if not work.readable or (work.damaged and not work.changed):
            return work.outcome(work.verify(path))
        with said(f"cannot write {str(output)!r}"):
            return work.write_new(output)


def repair_in_place(
    path: str | os.PathLike[str],
    manifest: Manifest,
    means: Means = _ALL,
) -> RepairOutcome:
    """Heal the checkpoint at ``path`` where it lies, after a journal of all changes is on disk.

    Finishes a repair of the same weights that was interrupted, unless its files were replaced
    since. Raises WeightguardError where the job cannot be done, or while another repair is at work
    in the folder; then nothing is written, save where the message says that a journal is kept.
    """
    path = Path(path)
    _require_there(path)
    root = path if path.is_dir() else path.parent
    weights = manifest.document.weights
    with locked(root):
        remove_abandoned(root, re.escape(JOURNAL))
        resumed, discarded = _settle_journal(root, path, manifest, means)
        with Repair(path, manifest, means) as work:
            if work.changed:
                images = work.changed_images()
                check_writable(root, [image.name for image in images])
                with said(f"cannot write the journal into {str(root)!r}; nothing was changed"):
                    write_journal(root, images, weights)
        if work.changed:
            unfinished = "repair --in-place goes on from its journal when it is run again"
            with said(f"cannot write into {str(root)!r}; {unfinished}"):
                _apply_new(root, weights)
        written = str(path) if work.changed or resumed else None
        outcome = work.outcome(work.verify(path))
        return replace(outcome, output=written, resumed=resumed, discarded=discarded)


def _require_there(path: Path) -> None:
    if not os.path.lexists(path):
        raise WeightguardError(f"{str(path)!r} does not exist: give the damaged checkpoint.")


def _settle_journal(root: Path, path: Path, manifest: Manifest, means: Means) -> tuple[bool, bool]:
    """Finish what a journal in ``root`` holds, or discard it; return which of them was done.

    It is discarded where it is not of the files that are there and they are as attested.
    """
    with said(f"cannot finish the interrupted repair in {str(root)!r}; its journal is kept"):
        try:
            return apply_journal(root, manifest.document.weights), False
        except JournalMisfitError as misfit:
            if not _is_sound(path, manifest, misfit.files, means):
                raise
        remove_journal(root)
    return False, True


def _is_sound(path: Path, manifest: Manifest, files: frozenset[str], means: Means) -> bool:
    """Return whether ``files`` are the checkpoint's, and all of it is as the manifest says."""
    try:
        with open_checkpoint(path) as checkpoint:
            opened = {file.name for file in checkpoint.files}
            report = verify_opened(checkpoint, manifest, threads=means.threads)
    except CheckpointError:
        return False
    graver = {found.rule for found in report.at_least(Severity.ERROR)}
    return report.complete and files <= opened and graver <= {"WG123"}


def _apply_new(root: Path, weights: str) -> None:
    try:
        apply_journal(root, weights)
    except NoRoomError:
        remove_journal(root)
        raise


__all__ = ["Means", "repair", "repair_in_place"]
