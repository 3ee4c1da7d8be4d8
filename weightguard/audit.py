"""Audit and verification: one pass over a checkpoint, every rule, one report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.checksums import file_digests as digest_files
from weightguard.checksums import verify_checksums
from weightguard.compare import Names, Observed, TensorComparison, match_names
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.finding import Coverage, FilesBeside, Finding, Report, finding, ordered
from weightguard.manifest import Manifest
from weightguard.progress import Meter, Progress
from weightguard.ranges import TensorRange
from weightguard.rules.configuration import check_config
from weightguard.rules.equality import check_equality, check_files
from weightguard.rules.health import HealthObserver, TensorHealth
from weightguard.rules.numeric import check_numbers
from weightguard.rules.selection import Codes, Selection
from weightguard.rules.superweights import check_lineages, check_salience, check_scales
from weightguard.salience_changes import SalienceComparison
from weightguard.salient import Salience
from weightguard.scan.digest import DigestAlgorithm
from weightguard.scan.fingerprint import (
    Statistics,
    TensorFingerprint,
    TensorObserver,
    UIntArray,
)
from weightguard.scan.formats import FORMATS
from weightguard.scan.stream import scan_tensors
from weightguard.survey import Survey, own_names
from weightguard.tensor import TensorView

SURVEYED = ("WG301", "WG302", "WG303", "WG304")
"""The rules that need a survey of what stands out in the weights."""

COMPARING = ("WG305", "WG306", "WG4")
"""The rules that need a manifest."""

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
    if manifest is None and all(code.startswith(COMPARING) for code in selection.codes):
        raise WeightguardError(
            f"the selected rules compare with a manifest ({', '.join(sorted(selection.codes))}), "
            "and none is given: nothing would be checked."
        )
    with _opened(manifest) as recorded:
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
    with _opened(manifest) as recorded:
        assert recorded is not None
        whole_files = bool(recorded.document.files)
        return _examine(Path(path), recorded, selection, whole_files, threads, progress)


@contextlib.contextmanager
def _opened(manifest: ManifestLike | None) -> Iterator[Manifest | None]:
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
        return _report(path, None, [error.finding], {}, complete=False)
    with checkpoint:
        examination = _Examination(checkpoint, manifest, selection, whole_files, threads)
        try:
            findings = examination.run(progress)
        except CheckpointError as error:
            found = [*selection.keep(checkpoint.findings), error.finding]
            return _report(path, checkpoint, found, examination.ranges, complete=False)
        report = _report(path, checkpoint, findings, examination.ranges, complete=True)
        return msgspec.structs.replace(report, salience=examination.salience)


def _report(
    path: Path,
    checkpoint: Checkpoint | None,
    findings: list[Finding],
    ranges: Mapping[str, TensorRange],
    *,
    complete: bool,
) -> Report:
    """Return the report; ``ranges`` are those of the tensors that were read, by name."""
    tensors = checkpoint.tensors if checkpoint else ()
    unread = checkpoint.unread if checkpoint else 0
    read = [ranges[tensor.name] for tensor in tensors if tensor.name in ranges]
    return Report(
        checkpoint=str(path),
        format=checkpoint.format if checkpoint else "unknown",
        complete=complete,
        findings=ordered(findings),
        coverage=Coverage(
            tensors_checked=len(read),
            tensors_total=len(tensors) + unread,
            bytes_checked=sum(found.nbytes for found in read),
            bytes_total=sum(tensor.nbytes for tensor in tensors),
            tensors_unread=unread,
        ),
        not_read=checkpoint.beside if checkpoint else FilesBeside(),
        ranges=tuple(read),
    )


class _RangeObserver:
    """Notes the range of a tensor when it was read to its end."""

    def __init__(self, tensor: TensorView, ranges: dict[str, TensorRange]):
        self._tensor, self._ranges = tensor, ranges

    def residues(self, first_row: int, residues: NDArray[np.uint64]) -> None:
        """See TensorObserver."""

    def magnitudes(self, first_row: int, magnitudes: UIntArray) -> None:
        """See TensorObserver."""

    def finished(self, fingerprint: TensorFingerprint) -> None:
        """See TensorObserver."""
        tensor, statistics = self._tensor, fingerprint.statistics
        self._ranges[tensor.name] = TensorRange(
            name=tensor.name,
            dtype=tensor.dtype.name,
            shape=tensor.shape,
            nbytes=tensor.nbytes,
            file=tensor.shard,
            offset=tensor.offset,
            min=_value(statistics, statistics.min_bits),
            max=_value(statistics, statistics.max_bits),
            absmax=statistics.absmax,
            rms=statistics.rms,
            zero=statistics.zero,
            nan=statistics.nan,
            inf=statistics.inf,
            raw=tensor.dtype.is_opaque,
        )


def _value(statistics: Statistics, bits: int | None) -> float | None:
    return None if bits is None else float(FORMATS[statistics.scalar].decode(bits))


class _Examination:
    """One pass over an opened checkpoint for all selected rules."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        manifest: Manifest | None,
        selection: Selection,
        whole_files: bool,
        threads: int | None,
    ):
        self._checkpoint, self._manifest = checkpoint, manifest
        self._selection, self._whole_files, self._threads = selection, whole_files, threads
        self._numeric: list[Finding] = []
        self._observed = Observed()
        self._names = (
            Names({}, (), (), ()) if manifest is None else match_names(checkpoint, manifest)
        )
        self._numbers = {} if manifest is None else manifest.numbers
        self._survey = Survey(checkpoint.tensors) if selection.any_of(SURVEYED) else None
        self._recorded = (
            None
            if manifest is None
            else SalienceComparison(checkpoint.tensors, self._names, manifest.document)
        )
        self.salience: Salience | None = None
        self.ranges: dict[str, TensorRange] = {}

    def run(self, progress: Progress | None) -> list[Finding]:
        checkpoint = self._checkpoint
        findings = list(checkpoint.findings)
        meter = Meter(self._total_bytes(), progress)
        findings += verify_checksums(checkpoint, self._whole_files, self._threads, meter)
        if self._whole_files and self._manifest is not None:
            files = digest_files(checkpoint, self._threads, meter)
            findings += check_files(self._manifest.document.files, files)
        scan_tensors(
            checkpoint.tensors,
            self._observe,
            digest=self._digest_algorithm(),
            threads=self._threads,
            meter=meter,
        )
        findings += self._judge()
        return self._selection.keep(findings)

    def _total_bytes(self) -> int:
        checkpoint = self._checkpoint
        stored = sum(
            c.nbytes for c in checkpoint.checksums if self._whole_files or not c.whole_file
        )
        hashed = self._whole_files and self._manifest is not None
        files = sum(file.size for file in checkpoint.files) if hashed else 0
        return checkpoint.nbytes + stored + files

    def _digest_algorithm(self) -> DigestAlgorithm | None:
        # nothing to compare a digest with: spare its cost, the greatest of the pass
        return None if self._manifest is None else self._manifest.document.digest_algorithm

    def _observe(self, tensor: TensorView) -> Sequence[TensorObserver]:
        observers: list[TensorObserver] = [_RangeObserver(tensor, self.ranges)]
        if self._selection.any_of("WG2"):
            observers.append(HealthObserver(tensor, self._judge_numbers))
        if self._manifest is not None:
            name = next(iter(self._names.matched.get(tensor.name, ())), None)
            record = None if name is None else self._manifest.document.tensors[name]
            number = None if name is None else self._numbers[name]
            observers.append(
                TensorComparison(tensor, record, self._manifest, number, self._observed)
            )
        if self._survey is not None:
            observers += self._survey.observers(tensor)
        if self._recorded is not None:
            observers += self._recorded.observers(tensor)
        return observers

    def _judge_numbers(self, health: TensorHealth) -> None:
        self._numeric.extend([*check_numbers(health)])

    def _judge(self) -> Iterator[Finding]:
        if not self._checkpoint.tensors:
            yield finding("WG210", "the checkpoint holds no tensor: nothing was checked")
        yield from self._numeric
        yield from check_config(self._checkpoint)
        if self._survey is not None:
            yield from self._judge_salience(self._survey)
        if self._recorded is not None:
            yield from check_salience(self._recorded)
        if self._manifest is not None:
            yield from check_equality(self._checkpoint, self._manifest, self._names, self._observed)

    def _judge_salience(self, survey: Survey) -> Iterator[Finding]:
        checkpoint = self._checkpoint
        found = survey.conclude(checkpoint.config, own_names(checkpoint), self._threads)
        self.salience = found.salience
        yield from check_lineages(found.lineages)
        tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
        yield from check_scales(found.salience.super_weights, tensors)
