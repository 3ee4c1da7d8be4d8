"""One pass over an opened checkpoint for every selected rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weightguard.checkpoint import Checkpoint
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.unfinished import unfinished_repair
from weightguard.checksums import file_digests as digest_files
from weightguard.checksums import verify_checksums
from weightguard.compare import Names, Observed, TensorComparison, match_names
from weightguard.finding import Coverage, FilesBeside, Finding, Report, finding, ordered
from weightguard.manifest import FileRecord, Manifest
from weightguard.progress import Meter, Progress
from weightguard.ranges import TensorRange
from weightguard.rules.configuration import check_config
from weightguard.rules.equality import check_equality, check_files
from weightguard.rules.health import HealthObserver, TensorHealth
from weightguard.rules.numeric import check_numbers
from weightguard.rules.selection import Selection
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
from weightguard.superweights.published import Lineage
from weightguard.survey import Survey, own_names
from weightguard.tensor import TensorView

SURVEYED = ("WG301", "WG302", "WG303", "WG304")
"""The rules that need a survey of what stands out in the weights."""


def report_of(
    path: Path,
    checkpoint: Checkpoint | None,
    findings: Iterable[Finding],
    ranges: Mapping[str, TensorRange],
    *,
    complete: bool,
) -> Report:
    """Return a report; ``ranges`` are those of the tensors that were read, by name.

    Without a checkpoint, since it cannot be opened, an unfinished repair may be why.
    """
    if checkpoint is None:
        findings = [*findings, *unfinished_repair(path, [path.name])]
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


class Companion(Protocol):
    """Something else that watches the pass, and may spare it files.

    ``trusted`` are files that need not be read, by name; ``digest`` is the tensor digest that the
    companion needs where no manifest asks for one, or None.
    """

    digest: DigestAlgorithm | None
    trusted: Mapping[str, FileRecord]

    def view(self, tensor: TensorView) -> TensorView:
        """Return the view of ``tensor`` that is to be scanned."""
        ...

    def observers(self, tensor: TensorView) -> Sequence[TensorObserver]:
        """Return who is to see ``tensor`` during the pass."""
        ...

    def replay(self, tensor: TensorView, observers: Sequence[TensorObserver]) -> None:
        """Show ``observers`` what a scan of a trusted tensor would have shown them."""
        ...


class Examination:
    """One pass over an opened checkpoint for all selected rules.

    ``companion`` watches it; ``survey`` asks for what stands out in the weights whatever the
    rules need. After ``run`` the digests, the salience and the lineages that were found are there.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        manifest: Manifest | None,
        selection: Selection,
        whole_files: bool,
        threads: int | None,
        companion: Companion | None = None,
        survey: bool = False,
    ):
        self._companion = companion
        self._trusted = {} if companion is None else companion.trusted
        self._checkpoint, self._manifest = checkpoint, manifest
        self._selection, self._whole_files, self._threads = selection, whole_files, threads
        self._numeric: list[Finding] = []
        self._observed = Observed()
        self._names = (
            Names({}, (), (), ()) if manifest is None else match_names(checkpoint, manifest)
        )
        self._numbers = {} if manifest is None else manifest.numbers
        surveyed = survey or selection.any_of(SURVEYED)
        self._survey = Survey(checkpoint.tensors) if surveyed else None
        self._recorded = (
            None
            if manifest is None
            else SalienceComparison(checkpoint.tensors, self._names, manifest.document)
        )
        self.salience: Salience | None = None
        self.lineages: tuple[Lineage, ...] = ()
        self.ranges: dict[str, TensorRange] = {}

    def run(self, progress: Progress | None) -> list[Finding]:
        """Read every tensor and return the findings of the selected rules.

        Raises CheckpointError when a file cannot be read to its end.
        """
        checkpoint = self._checkpoint
        findings = list(checkpoint.findings)
        meter = Meter(self._total_bytes(), progress)
        findings += verify_checksums(checkpoint, self._whole_files, self._threads, meter)
        if self._whole_files and self._manifest is not None:
            hashed = digest_files(self._files(), self._threads, meter)
            findings += check_files(self._manifest.document.files, {**self._trusted, **hashed})
        self._scan(meter)
        findings += self._judge()
        return self._selection.keep(findings)

    def _scan(self, meter: Meter) -> None:
        companion, tensors = self._companion, self._checkpoint.tensors
        own = {tensor.name: tensor for tensor in tensors}

        def observe(view: TensorView) -> Sequence[TensorObserver]:
            # judged by the tensor itself: a companion's view is for reading it once
            tensor = own[view.name]
            watching = companion.observers(tensor) if companion else ()
            return [_RangeObserver(tensor, self.ranges), *watching, *self._observe(tensor)]

        read = [t for t in tensors if t.shard not in self._trusted]
        scan_tensors(
            [companion.view(t) for t in read] if companion else read,
            observe,
            digest=self._digest_algorithm(),
            threads=self._threads,
            meter=meter,
        )
        for tensor in tensors:
            if companion is not None and tensor.shard in self._trusted:
                companion.replay(tensor, self._observe(tensor))

    def _total_bytes(self) -> int:
        checkpoint = self._checkpoint
        stored = sum(
            c.nbytes for c in checkpoint.checksums if self._whole_files or not c.whole_file
        )
        hashed = self._whole_files and self._manifest is not None
        files = sum(file.size for file in self._files()) if hashed else 0
        tensors = sum(t.nbytes for t in checkpoint.tensors if t.shard not in self._trusted)
        return tensors + stored + files

    def _files(self) -> list[CheckpointFile]:
        return [file for file in self._checkpoint.files if file.name not in self._trusted]

    def _digest_algorithm(self) -> DigestAlgorithm | None:
        if self._manifest is not None:
            return self._manifest.document.digest_algorithm
        # nothing to compare a digest with: spare its cost, the greatest of the pass
        return None if self._companion is None else self._companion.digest

    def _observe(self, tensor: TensorView) -> Sequence[TensorObserver]:
        observers: list[TensorObserver] = []
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
        if self._recorded is not None and self._manifest is not None:
            changed = self._recorded.super_weights()
            yield from check_salience(changed, self._recorded.channels())
            proven = [(change.tensor.name, change.recorded.index) for change in changed]
            yield from check_equality(
                self._checkpoint, self._manifest, self._names, self._observed, proven
            )

    def _judge_salience(self, survey: Survey) -> Iterator[Finding]:
        checkpoint = self._checkpoint
        found = survey.conclude(checkpoint.config, own_names(checkpoint), self._threads)
        self.salience, self.lineages = found.salience, found.lineages
        if self._recorded is not None:
            self.salience = self._recorded.with_confirmed(found.salience)
        yield from check_lineages(found.lineages)
        tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
        yield from check_scales(found.salience.super_weights, tensors)
