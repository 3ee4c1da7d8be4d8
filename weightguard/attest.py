"""Making a manifest: one pass over a checkpoint, its rows going straight into the sidecar."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from weightguard.catalogue import Severity
from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.checkpoint.names import require_unicode_file_names
from weightguard.checksums import file_digests as digest_files
from weightguard.checksums import verify_checksums
from weightguard.errors import CheckpointError
from weightguard.manifest import FileRecord, Manifest
from weightguard.parity import ParityWriter
from weightguard.progress import Meter, Progress
from weightguard.recording import Recording
from weightguard.scan.digest import DigestAlgorithm
from weightguard.scan.fingerprint import TensorObserver
from weightguard.scan.stream import scan_tensors
from weightguard.survey import Survey
from weightguard.tensor import TensorView


def fingerprint(
    path: str | os.PathLike[str],
    *,
    digest: DigestAlgorithm = "blake3",
    file_digests: bool = False,
    parity: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Return the manifest of the checkpoint at ``path``; the same for any sharding and threads.

    ``parity`` adds what lost blocks and damaged headers can be restored from; it takes 1/32 of
    the checkpoint's size in the folder for temporary files, and depends on the files too.
    Raises CheckpointError when the checkpoint cannot be read, or when its container already
    shows damage: what is known to be broken is not attested.
    """
    with open_checkpoint(path) as checkpoint:
        _refuse_damaged(checkpoint)
        if file_digests:
            require_unicode_file_names(file.name for file in checkpoint.files)
        whole_files = sum(file.size for file in checkpoint.files) if file_digests else 0
        stored = sum(c.nbytes for c in checkpoint.checksums if file_digests or not c.whole_file)
        meter = Meter(checkpoint.nbytes + whole_files + stored, progress)
        for mismatch in verify_checksums(checkpoint, file_digests, threads, meter):
            raise CheckpointError(mismatch)
        files = digest_files(checkpoint.files, threads, meter) if file_digests else {}
        return _attest(checkpoint, files, digest, _Work(threads, meter, parity))


def _refuse_damaged(checkpoint: Checkpoint) -> None:
    for found in checkpoint.findings:
        if found.level >= Severity.ERROR:
            raise CheckpointError(found)


@dataclass(frozen=True, slots=True)
class _Work:
    """How the pass is to be made, and whether it also makes parity."""

    threads: int | None
    meter: Meter
    parity: bool


def _attest(
    checkpoint: Checkpoint,
    files: dict[str, FileRecord],
    digest: DigestAlgorithm,
    work: _Work,
) -> Manifest:
    recording = Recording(checkpoint.tensors, digest)
    survey = Survey(checkpoint.tensors)

    def observe(tensor: TensorView) -> Sequence[TensorObserver]:
        return [recording.observer(tensor), *survey.observers(tensor)]

    parity = ParityWriter(checkpoint, recording.numbers) if work.parity else None
    scan_tensors(
        checkpoint.tensors,
        observe,
        digest=digest,
        threads=work.threads,
        meter=work.meter,
        take_block=None if parity is None else parity.add,
    )
    # of the tensors alone: what the checkpoint calls itself is no part of a manifest
    salience = survey.conclude(threads=work.threads).salience
    return recording.finish(files, salience, None if parity is None else parity.finish())
