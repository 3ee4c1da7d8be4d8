"""The gate: one pass over a checkpoint for its policy, one report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.drift import Drift, DriftLimits
from weightguard.errors import CheckpointError, ManifestError, WeightguardError
from weightguard.examination import Examination, report_of
from weightguard.finding import Finding, Report, finding, ordered
from weightguard.manifest import FileRecord, Manifest, is_manifest
from weightguard.policy.document import DriftRule, Policy, UnusableError
from weightguard.policy.places import place_of
from weightguard.policy.reading import problems_of
from weightguard.progress import Progress
from weightguard.requirements import (
    check_calibration,
    check_container,
    check_lineage,
    check_signature,
)
from weightguard.rules.drift import check_drift
from weightguard.rules.selection import Selection
from weightguard.scan.digest import DigestAlgorithm
from weightguard.scan.fingerprint import TensorObserver
from weightguard.tensor import TensorView
from weightguard.trust import Identity, TrustCache
from weightguard.version import VERSION

_BASE = ("drift", "base")


def gate(
    path: str | os.PathLike[str],
    policy: Policy,
    *,
    source: str | os.PathLike[str] = "weightguard.toml",
    manifest: str | os.PathLike[str] | None = None,
    trust_cache: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Return what speaks against the checkpoint at ``path`` under ``policy``.

    ``source`` is the policy's file: its paths are relative to its folder, and the report names it.
    ``manifest`` takes the place of the one that the policy names. ``trust_cache`` takes shards that
    look unchanged from the cache of earlier runs instead of reading them; each is a finding. The
    gate is passed when the report is complete and holds nothing at or above
    ``policy.least_failing``.
    Raises ManifestError for an unusable manifest, PolicyError for a policy that cannot be applied,
    WeightguardError for a base or key that cannot be read, and where every rule that is selected
    needs a manifest and none is named.
    """
    path, source = Path(path), Path(source)
    try:
        report = _report(path, policy, source.parent, manifest, trust_cache, threads, progress)
    except UnusableError as error:
        raise problems_of(source).at(error.keys, error.words) from error
    return msgspec.structs.replace(report, policy=str(source))


def _report(
    path: Path,
    policy: Policy,
    folder: Path,
    manifest: str | os.PathLike[str] | None,
    trust_cache: bool,
    threads: int | None,
    progress: Progress | None,
) -> Report:
    with ExitStack() as stack:
        demanded = manifest_path(path, policy, folder, manifest)
        recorded = None
        if demanded is not None and demanded.exists():
            recorded = stack.enter_context(Manifest.read(demanded))
        elif policy.manifest is None or not policy.manifest.required:
            _require_other_than_comparing(policy)
        base = None
        if policy.drift is not None:
            base = stack.enter_context(_open_base(folder / policy.drift.base))
        try:
            checkpoint = stack.enter_context(open_checkpoint(path))
        except CheckpointError as error:
            return report_of(path, None, [error.finding], {}, complete=False)
        passing = _Passing(checkpoint, policy, recorded, demanded, base, trust_cache)
        stack.callback(passing.close)
        signed = check_signature(path, policy, folder, demanded, recorded, threads)
        return passing.run(path, signed, threads, progress)


def _require_other_than_comparing(policy: Policy) -> None:
    try:
        selection_of(policy).require_other_than_comparing()
    except WeightguardError as error:
        keys = ("rules", "select") if policy.rules.select else ("rules",)
        remedy = "Name one: path in [manifest], or --manifest."
        raise UnusableError(keys, f"leaves nothing to check: {error} {remedy}") from error


def manifest_path(
    checkpoint: Path, policy: Policy, folder: Path, named: str | os.PathLike[str] | None = None
) -> Path | None:
    """Return where the manifest of a checkpoint should be, None where no one is asked for.

    ``folder`` is the policy's; ``named`` goes before what the policy says, and must be there.
    """
    if named is not None:
        # named by the caller: a file that is missing is an error of his
        if not Path(named).exists():
            raise ManifestError(f"there is no manifest at {str(named)!r}.")
        return Path(named)
    return None if policy.manifest is None else place_of(policy.manifest.path, checkpoint, folder)


def selection_of(policy: Policy) -> Selection:
    """Return the rules that a policy selects."""
    return Selection.of(policy.rules.select, policy.rules.ignore)


def _open_base(path: Path) -> Checkpoint:
    if path.is_file() and is_manifest(path):
        raise UnusableError(
            _BASE,
            f"names {str(path)!r}, a manifest, which holds no weights to measure drift from: name "
            "the checkpoint.",
        )
    try:
        return open_checkpoint(path)
    except CheckpointError as error:
        words = f"names {str(path)!r}, which cannot be read: {error}. {error.finding.remedy}"
        raise UnusableError(_BASE, words) from error


class _Watch:
    """The companion of the pass: measures drift, and fills and serves the trust cache."""

    def __init__(self, drift: Drift | None, cache: TrustCache | None, digest: DigestAlgorithm):
        self._drift, self._cache = drift, cache
        self.digest: DigestAlgorithm | None = None if cache is None else digest
        self.trusted: Mapping[str, FileRecord] = {} if cache is None else cache.trusted

    def view(self, tensor: TensorView) -> TensorView:
        """See Companion."""
        return tensor if self._drift is None else self._drift.view(tensor)

    def observers(self, tensor: TensorView) -> Sequence[TensorObserver]:
        """See Companion; the cache is last, since it keeps what the others found."""
        measured = () if self._drift is None else self._drift.observers(tensor)
        kept = () if self._cache is None else self._cache.observers(tensor, self._drift)
        return [*measured, *kept]

    def replay(self, tensor: TensorView, observers: Sequence[TensorObserver]) -> None:
        """See Companion."""
        assert self._cache is not None
        self._cache.replay(tensor, observers)


class _Passing:
    """One checkpoint before one policy."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        policy: Policy,
        manifest: Manifest | None,
        demanded: Path | None,
        base: Checkpoint | None,
        trust_cache: bool,
    ):
        self._checkpoint, self._policy = checkpoint, policy
        self._manifest, self._demanded = manifest, demanded
        self._drift = None if base is None else _measure(base, checkpoint)
        digest = "blake3" if manifest is None else manifest.document.digest_algorithm
        self._cache = None
        if trust_cache:
            self._cache = TrustCache(checkpoint, _context(base), digest)
            if self._drift is not None:
                self._drift.take(self._cache.changes)
        self._watch = _Watch(self._drift, self._cache, digest)

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()

    def run(
        self,
        path: Path,
        signed: Iterable[Finding],
        threads: int | None,
        progress: Progress | None,
    ) -> Report:
        policy, checkpoint = self._policy, self._checkpoint
        demands = [*signed, *self._check_before()]
        examination = Examination(
            checkpoint,
            self._manifest,
            selection_of(policy),
            self._manifest is not None and bool(self._manifest.document.files),
            threads,
            self._watch,
            survey=policy.super_weights is not None,
        )
        try:
            found = examination.run(progress)
        except CheckpointError as error:
            stopped = [*self._judged([*checkpoint.findings, *demands]), error.finding]
            return report_of(path, checkpoint, stopped, examination.ranges, complete=False)
        demands += check_lineage(examination.lineages, policy)
        demands += self._check_drift()
        judged = self._judged([*found, *demands])
        report = report_of(path, checkpoint, judged, examination.ranges, complete=True)
        return msgspec.structs.replace(report, salience=examination.salience)

    def _check_before(self) -> Iterator[Finding]:
        policy = self._policy
        yield from check_container(self._checkpoint, policy)
        rule = policy.manifest
        if rule is not None and rule.required and self._manifest is None:
            yield finding("WG511", f"there is no manifest at {str(self._demanded)!r}")
        yield from check_calibration(self._manifest, policy)
        for name, record in sorted(self._watch.trusted.items()):
            yield finding(
                "WG519",
                f"not read: an earlier run found SHA-256 {record.sha256}, and size, times and "
                "inode are as they were",
                file=name,
                evidence={"sha256": record.sha256, "size": record.size},
            )

    def _check_drift(self) -> Iterator[Finding]:
        rule = self._policy.drift
        if rule is None or self._drift is None:
            return
        yield from check_drift(self._drift.changes, _limits(rule))

    def _judged(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        judged = (self._policy.judge(found) for found in findings)
        return ordered(found for found in judged if found is not None)


def _measure(base: Checkpoint, checkpoint: Checkpoint) -> Drift:
    drift = Drift(base.tensors, checkpoint.tensors)
    if checkpoint.tensors and not any(
        drift.pairs.matched[t.name].shape == t.shape
        for t in checkpoint.tensors
        if t.name in drift.pairs.matched
    ):
        raise UnusableError(
            _BASE,
            f"names {str(base.path)!r}, which is another model: no tensor has a name and shape of "
            "the checkpoint's. Name the checkpoint that this one was made from.",
        )
    return drift


def _limits(rule: DriftRule) -> DriftLimits:
    return DriftLimits(rule.max_change, rule.changed, rule.replaced, rule.added, rule.removed)


def _context(base: Checkpoint | None) -> list[str]:
    """Return all that the kept results rest on besides the shard."""
    files = () if base is None else base.files
    return [VERSION, *(msgspec.json.encode(Identity.of(file)).decode() for file in files)]
