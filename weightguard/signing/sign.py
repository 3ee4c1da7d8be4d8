"""Signing a folder: attest its weights, or check those attested, then sign every file of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from weightguard.atomic import atomic_write
from weightguard.attest import fingerprint
from weightguard.audit import verify
from weightguard.catalogue import Severity
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.names import require_unicode_file_names, shown
from weightguard.checkpoint.strict_json import read_json_object
from weightguard.checkpoint.unfinished import REMEDY, is_journal
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.finding import Report
from weightguard.progress import Progress
from weightguard.signing.library import MAX_SIGNATURE_BYTES
from weightguard.signing.parties import Signer
from weightguard.signing.pen import pen_of
from weightguard.signing.verification import SIGNATURE_NAME, entries, inside

MANIFEST_NAME = "model.weightguard.json"
"""Of the manifest that is written where a folder has none."""

_SUFFIX = ".weightguard.json"


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that was written, and the manifest it covers; ``attested`` if that is new."""

    signature: Path
    manifest: Path
    attested: bool


def sign(
    folder: str | os.PathLike[str],
    signer: Signer,
    *,
    signature: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Signed | Report:
    """Sign every file of ``folder`` and return what was written, or the report that forbids it.

    Writes a manifest first where the folder has none; else the weights must equal it, and where
    they do not, nothing is written and the report of ``verify`` is returned. ``signature`` is
    ``model.sig`` in the folder by default. Raises WeightguardError (CheckpointError,
    ManifestError among them) where the folder cannot be attested, or a key cannot be used.
    """
    root = Path(folder)
    if not root.is_dir():
        raise WeightguardError(f"{str(root)!r} is no folder, and a signature is of a folder.")
    target = root / SIGNATURE_NAME if signature is None else Path(signature)
    _refuse_replacing(target)
    pen = pen_of(signer)
    _refuse_unsignable(root)
    manifest, attested = _manifest_in(root), False
    if manifest is None:
        manifest, attested = root / MANIFEST_NAME, True
        with fingerprint(root, threads=threads, progress=progress) as made:
            made.write(manifest)
    else:
        report = verify(root, manifest, threads=threads, progress=progress)
        if not report.complete or report.at_least(Severity.ERROR):
            return report
    name = inside(root, target)
    data = pen(root, [] if name is None else [name])
    try:
        with atomic_write(target) as file:
            file.write(data)
    except OSError as error:
        raise WeightguardError(
            f"cannot write the signature {str(target)!r}: {error.strerror}. Make its folder "
            "writable, or name another with --signature"
        ) from error
    return Signed(target, manifest, attested)


def _manifest_in(root: Path) -> Path | None:
    found = sorted(path for path in root.iterdir() if path.name.endswith(_SUFFIX))
    if len(found) > 1:
        names = ", ".join(shown(path.name) for path in found[:4])
        raise WeightguardError(f"{str(root)!r} holds several manifests ({names}): leave one.")
    return found[0] if found else None


def _refuse_unsignable(root: Path) -> None:
    """Raise WeightguardError for what the library refuses, before anything is written.

    So it does for what may be half written.
    """
    for name, entry in entries(root, frozenset()):
        require_unicode_file_names([name])
        if is_journal(entry.name):
            raise WeightguardError(
                f"{shown(name)} is of a repair in place that was interrupted: nothing was signed. "
                f"{REMEDY}"
            )
        if not entry.is_file(follow_symlinks=False):
            raise WeightguardError(
                f"{shown(name)} is no regular file, and signatures are of regular files. "
                "Replace the link by its file, or remove it."
            )


def _refuse_replacing(target: Path) -> None:
    """Raise WeightguardError where the signature would replace anything but a signature."""
    if not target.parent.is_dir():
        raise WeightguardError(f"cannot write {str(target)!r}: its folder does not exist.")
    if not os.path.lexists(target):
        return
    try:
        file = CheckpointFile(target, target.name)
        try:
            bundle = read_json_object(file, limit=MAX_SIGNATURE_BYTES, code="WG502")
        finally:
            file.close()
    except CheckpointError:
        bundle = {}
    if "verificationMaterial" not in bundle:
        raise WeightguardError(
            f"{str(target)!r} exists and is no signature: it would be overwritten. "
            "Name another file with --signature."
        )
