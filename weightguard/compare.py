"""Expected against observed: a checkpoint's tensors beside the manifest's records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weightguard.checkpoint import Checkpoint
from weightguard.locate import ElementChange, RowDelta, locate
from weightguard.manifest import Manifest, TensorRecord
from weightguard.scan.fingerprint import TensorFingerprint, UIntArray
from weightguard.tensor import TensorView

MAX_LOCATED_ROWS = 4096
"""Rows of one tensor that are followed down to the element; beyond it, rows are only counted."""


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How one tensor's bytes differ from its record: blocks, rows, and elements where known.

    ``rows`` lists at most MAX_LOCATED_ROWS of ``row_count`` damaged rows.
    """

    tensor: TensorView
    expected: str
    observed: str
    blocks: tuple[int, ...]
    row_count: int
    rows: tuple[int, ...]
    elements: tuple[ElementChange, ...]


@dataclass(slots=True)
class Observed:
    """What a pass over the checkpoint found beside the records; filled by TensorComparison."""

    digests: dict[str, str] = field(default_factory=dict)
    differences: list[TensorDifference] = field(default_factory=list)


class TensorComparison:
    """Observes one tensor and compares its rows with the recorded ones as they come."""

    def __init__(
        self,
        tensor: TensorView,
        record: TensorRecord | None,
        manifest: Manifest,
        number: int | None,
        observed: Observed,
    ):
        self._tensor, self._record, self._observed = tensor, record, observed
        self._sidecar = manifest.sidecar
        same = record is not None and (record.dtype, record.shape) == (
            tensor.dtype.name,
            tensor.shape,
        )
        self._number = number if same else None
        self._deltas: list[RowDelta] = []
        self._row_count = 0

    def residues(self, first_row: int, residues: NDArray[np.uint64]) -> None:
        """See TensorObserver."""
        if self._number is None:
            return
        expected = self._sidecar.read(f"{self._number}/residues", first_row, len(residues))
        damaged = np.flatnonzero((expected != residues).any(axis=1))
        self._row_count += len(damaged)
        for row in damaged[: MAX_LOCATED_ROWS - len(self._deltas)].tolist():
            delta = residues[row] - expected[row]
            self._deltas.append(RowDelta(first_row + row, int(delta[0]), int(delta[1])))

    def magnitudes(self, first_row: int, magnitudes: UIntArray) -> None:
        """See TensorObserver; row maxima follow from the bytes and are not compared."""

    def finished(self, fingerprint: TensorFingerprint) -> None:
        """See TensorObserver."""
        digest = fingerprint.digest
        assert digest is not None, "comparing needs tensor digests"
        self._observed.digests[self._tensor.name] = digest
        if self._number is None or self._record is None:
            return
        if digest != self._record.digest:
            self._observed.differences.append(
                self._difference(fingerprint, self._record.digest, digest)
            )

    def _difference(
        self, fingerprint: TensorFingerprint, recorded: str, digest: str
    ) -> TensorDifference:
        expected = self._sidecar.read(f"{self._number}/blocks")
        blocks = np.flatnonzero((expected != fingerprint.blocks).any(axis=1))
        return TensorDifference(
            self._tensor,
            recorded,
            digest,
            tuple(blocks.tolist()),
            self._row_count,
            tuple(delta.row for delta in self._deltas),
            tuple(locate(self._tensor, self._deltas, expected)),
        )


@dataclass(frozen=True, slots=True)
class Names:
    """How the names of checkpoint and manifest match up.

    ``matched`` maps each checkpoint tensor to the records of its names (several where names are
    tied here that were not); ``missing`` are records without a tensor, ``extra`` tensors without
    a record, ``untied`` recorded names that are absent here while a tied name is present.
    """

    matched: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    untied: tuple[str, ...]


def match_names(checkpoint: Checkpoint, manifest: Manifest) -> Names:
    """Match tensors to records by name, tied names counting on both sides."""
    records = manifest.document.tensors
    recorded = {name: primary for primary, r in records.items() for name in (primary, *r.aliases)}
    present = {name for tensor in checkpoint.tensors for name in (tensor.name, *tensor.aliases)}
    matched, extra = {}, []
    for tensor in checkpoint.tensors:
        names: Sequence[str] = (tensor.name, *tensor.aliases)
        found = tuple(dict.fromkeys(recorded[name] for name in names if name in recorded))
        if found:
            matched[tensor.name] = found
        else:
            extra.append(tensor.name)
    missing = [primary for primary, r in records.items() if not present & {primary, *r.aliases}]
    untied = [
        alias
        for primary, r in records.items()
        if primary not in missing
        for alias in (primary, *r.aliases)
        if alias not in present
    ]
    return Names(matched, tuple(sorted(missing)), tuple(sorted(extra)), tuple(sorted(untied)))
