"""Making a manifest: one pass over a checkpoint, its rows going straight into the sidecar."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from weightguard.catalogue import Severity
from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.checkpoint.names import require_unicode_file_names
from weightguard.checksums import file_digests as digest_files
from weightguard.checksums import verify_checksums
from weightguard.errors import CheckpointError
from weightguard.manifest import (
    BLOCK_DIGEST,
    RESIDUES,
    SCHEMA,
    UNWRITTEN,
    FileRecord,
    Manifest,
    ManifestDocument,
    SidecarRecord,
    TensorRecord,
    tensor_record,
    weights_digest,
)
from weightguard.progress import Meter, Progress
from weightguard.scan.digest import DigestAlgorithm
from weightguard.scan.fingerprint import TensorFingerprint, TensorObserver, UIntArray
from weightguard.scan.stream import scan_tensors
from weightguard.sidecar import SidecarWriter, array_specs
from weightguard.survey import Survey
from weightguard.tensor import TensorView


def fingerprint(
    path: str | os.PathLike[str],
    *,
    digest: DigestAlgorithm = "blake3",
    file_digests: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Return the manifest of the checkpoint at ``path``; the same for any sharding and threads.

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
        files = digest_files(checkpoint, threads, meter) if file_digests else {}
        return _attest(checkpoint, files, digest, threads, meter)


def _refuse_damaged(checkpoint: Checkpoint) -> None:
    for found in checkpoint.findings:
        if found.level >= Severity.ERROR:
            raise CheckpointError(found)


def _attest(
    checkpoint: Checkpoint,
    files: dict[str, FileRecord],
    digest: DigestAlgorithm,
    threads: int | None,
    meter: Meter,
) -> Manifest:
    by_name = sorted(checkpoint.tensors, key=lambda tensor: tensor.name)
    numbers = {tensor.name: number for number, tensor in enumerate(by_name)}
    writer = SidecarWriter(
        spec for number, tensor in enumerate(by_name) for spec in array_specs(number, tensor)
    )
    records: dict[str, TensorRecord] = {}

    survey = Survey(checkpoint.tensors)

    def observe(tensor: TensorView) -> Sequence[TensorObserver]:
        recorder = _Recorder(writer, numbers[tensor.name], records)
        return [recorder, *survey.observers(tensor)]

    scan_tensors(checkpoint.tensors, observe, digest=digest, threads=threads, meter=meter)
    sidecar = writer.finish()
    document = ManifestDocument(
        SCHEMA,
        digest,
        BLOCK_DIGEST,
        RESIDUES,
        weights_digest(records),
        records,
        files,
        # of the tensors alone: what the checkpoint calls itself is no part of a manifest
        survey.conclude(threads=threads).salience,
        None,
        SidecarRecord(UNWRITTEN, sidecar.file.size, sidecar.digest()),
    )
    return Manifest(document, sidecar)


class _Recorder:
    """Writes one tensor's rows into the sidecar and its fingerprint into the records."""

    def __init__(self, writer: SidecarWriter, number: int, records: dict[str, TensorRecord]):
        self._writer, self._number, self._records = writer, number, records

    def residues(self, first_row: int, residues: NDArray[np.uint64]) -> None:
        self._writer.write(f"{self._number}/residues", first_row, residues)

    def magnitudes(self, first_row: int, magnitudes: UIntArray) -> None:
        self._writer.write(f"{self._number}/row_absmax", first_row, magnitudes)

    def finished(self, fingerprint: TensorFingerprint) -> None:
        self._writer.write(f"{self._number}/blocks", 0, fingerprint.blocks)
        if fingerprint.columns is not None:
            self._writer.write(f"{self._number}/column_absmax", 0, fingerprint.columns)
        self._records[fingerprint.tensor.name] = tensor_record(fingerprint)
