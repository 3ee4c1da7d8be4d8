"""A pass over tensors recorded as their manifest, and shown again to those who missed it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from weightguard.manifest import (
    RESIDUES,
    SCHEMA,
    FileRecord,
    Manifest,
    ManifestDocument,
    StatisticsRecord,
    TensorRecord,
    companion_record,
    tensor_record,
    weights_digest,
)
from weightguard.salient import Salience
from weightguard.scan.digest import BLOCK_DIGEST, DigestAlgorithm
from weightguard.scan.fingerprint import (
    FLUSH_ROWS,
    Statistics,
    TensorFingerprint,
    TensorObserver,
    UIntArray,
    has_columns,
)
from weightguard.sidecar import Sidecar, SidecarWriter, array_specs
from weightguard.tensor import TensorView


class Recording:
    """Takes in a pass over some tensors and ends as their manifest."""

    def __init__(self, tensors: Iterable[TensorView], digest: DigestAlgorithm):
        by_name = sorted(tensors, key=lambda tensor: tensor.name)
        self._digest: DigestAlgorithm = digest
        self.numbers = {tensor.name: number for number, tensor in enumerate(by_name)}
        self._records: dict[str, TensorRecord] = {}
        self._writer = SidecarWriter(
            spec for number, tensor in enumerate(by_name) for spec in array_specs(number, tensor)
        )

    def observer(self, tensor: TensorView) -> TensorObserver:
        """Return who records ``tensor``."""
        return _Recorder(self._writer, self.numbers[tensor.name], self._records)

    @property
    def complete(self) -> bool:
        """Whether every tensor was recorded."""
        return len(self._records) == len(self.numbers)

    def finish(
        self, files: dict[str, FileRecord], salience: Salience, parity: Sidecar | None = None
    ) -> Manifest:
        """Return the manifest of what was recorded; nothing can be recorded after it.

        ``parity`` is the parity made in the same pass, if any.
        """
        sidecar = self._writer.finish()
        document = ManifestDocument(
            SCHEMA,
            self._digest,
            BLOCK_DIGEST,
            RESIDUES,
            weights_digest(self._records),
            self._records,
            files,
            salience,
            None,
            companion_record(sidecar),
            msgspec.UNSET if parity is None else companion_record(parity),
        )
        return Manifest(document, sidecar, parity)


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


def replay(manifest: Manifest, tensor: TensorView, observers: Sequence[TensorObserver]) -> None:
    """Show ``observers`` what the pass that ``manifest`` was made in saw of ``tensor``."""
    record, number = manifest.document.tensors[tensor.name], manifest.numbers[tensor.name]
    sidecar = manifest.sidecar
    for first in range(0, tensor.layout.rows, FLUSH_ROWS):
        count = min(FLUSH_ROWS, tensor.layout.rows - first)
        residues = sidecar.read(f"{number}/residues", first, count)
        magnitudes = sidecar.read(f"{number}/row_absmax", first, count)
        for observer in observers:
            observer.residues(first, residues)
            observer.magnitudes(first, magnitudes)
    columns = sidecar.read(f"{number}/column_absmax") if has_columns(tensor) else None
    blocks = sidecar.read(f"{number}/blocks")
    seen = TensorFingerprint(tensor, record.digest, blocks, _statistics(record.statistics), columns)
    for observer in observers:
        observer.finished(seen)


def _statistics(record: StatisticsRecord) -> Statistics:
    return Statistics(
        record.scalar,
        record.finite,
        record.nan,
        record.inf,
        record.zero,
        record.subnormal,
        None if record.min is None else int(record.min.bits, 16),
        None if record.max is None else int(record.max.bits, 16),
        int(record.absmax.bits, 16),
        record.mean,
        record.rms,
    )
