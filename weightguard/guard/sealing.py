"""Sealing one adapter's tensors again and again, and taking down what each sealing found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from weightguard.finding import Finding, finding
from weightguard.guard.adapter import Adapter, Gap
from weightguard.guard.baseline import Baseline, Key, TensorBaseline
from weightguard.guard.casebook import Casebook
from weightguard.guard.coverage import gap_findings, gaps_of, live_coverage
from weightguard.guard.deviations import Deviation
from weightguard.guard.incident import UNCOVERED, Incident
from weightguard.guard.ledger import Place
from weightguard.guard.mend import Golden, Mender
from weightguard.guard.metrics import COVERAGE_RATIO, REPAIRS
from weightguard.guard.originals import Originals, Proved
from weightguard.guard.restore import is_record, remade, restoration
from weightguard.guard.seal import Attempt, Sealed, refuse_stranger, seal
from weightguard.guard.settings import Settings
from weightguard.guard.shares import Declared
from weightguard.manifest import Manifest

ATTESTATION = "attestation"
"""Aspect of a place: whether what was sealed is what the manifest holds."""

DIFFERENT = "WG401"
NOTHING = "the model has no parameters or buffers, so that there is nothing to guard"

Names: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Cure:
    """What was tried on one tensor, what it should hold, and whether it holds that now."""

    attempt: Attempt
    entry: TensorBaseline
    held: bool


class Sealing:
    """The sealings of one guard."""

    def __init__(
        self,
        adapter: Adapter,
        key: Key,
        golden: Golden | None,
        settings: Settings,
        casebook: Casebook,
        names: Names | None,
    ):
        self._adapter, self._key, self._settings = adapter, key, settings
        self._golden, self._mender = golden, Mender(adapter, key, golden)
        self._casebook = casebook
        self._known_gaps: tuple[Gap, ...] = ()
        self._names, self._declared = names or {}, settings.declared

    def seal(
        self,
        manifest: Manifest | None,
        names: Names | None = None,
        declared: Declared | None = None,
    ) -> Sealed:
        """Read all live tensors once, and damaged ones again after a repair. See ``seal``.

        ``names`` and ``declared`` are those of the last sealing where they are None.
        Where repair is a reaction, tensors that differ from their records are put right first.
        Raises WeightguardError where none is the manifest's: it is that of another model.
        """
        names = self._names if names is None else names
        declared = self._declared if declared is None else declared
        sealed = self._read(manifest, names, declared)
        refuse_stranger(sealed.baseline, manifest)
        self._names, self._declared = names, declared
        entries = sealed.baseline.tensors.values()
        known = any(entry.attestation != "trusted-on-first-use" for entry in entries)
        if manifest is None or not known or "repair" not in self._settings.on_incident:
            return sealed
        cures = list(self._cures(sealed, manifest))
        if cures:
            settled = declared.settled_as(*_with(cures, sealed))
            sealed = self._read(manifest, names, settled)
        return replace(sealed, attempts=tuple(cure.attempt for cure in cures))

    def _read(self, manifest: Manifest | None, names: Names, declared: Declared) -> Sealed:
        threads, golden = self._settings.threads, self._golden
        originals = golden if isinstance(golden, Originals) else None
        return seal(self._adapter, self._key, manifest, names, threads, originals, declared)

    def _cures(self, sealed: Sealed, manifest: Manifest) -> Iterator[_Cure]:
        """Put right what differs from the manifest, as far as it is known what it should hold."""
        key, golden = self._key, self._golden
        proved = Proved(golden, manifest, key) if isinstance(golden, Originals) else None
        for found in sealed.findings:
            entry = sealed.baseline.tensors.get(found.location.tensor or "")
            if found.rule != DIFFERENT or entry is None:
                continue
            told = None
            if is_record(entry, manifest):
                told = restoration(self._adapter, entry, manifest, key, golden)
            elif proved is not None:
                told = remade(self._adapter, entry, key, proved)
            if told is not None:
                outcomes = [self._mender.attempt(told.entry, ref) for ref in told.blocks]
                self._settings.metrics.add(REPAIRS, sum(held for held, _ in outcomes))
                attempt = Attempt(found, tuple(outcome for _, outcome in outcomes))
                yield _Cure(attempt, told.entry, all(held for held, _ in outcomes))

    def begin(self, baseline: Baseline, former: Baseline | None = None) -> None:
        """Strike what was open of a former baseline, but for what still is no better attested.

        ``former`` is what tensors that did not change are vouched for by, None where all are
        compared anew.
        """
        same = () if former is None else former.tensors.keys() - former.changed(baseline)
        self._casebook.begin_again({Place(name, aspect=ATTESTATION) for name in same})
        coverage = live_coverage(baseline.attestations, gaps_of(self._adapter))
        self._settings.metrics.set(COVERAGE_RATIO, coverage.ratio)

    def incidents(self, sealed: Sealed) -> list[Incident]:
        """Take down what sealing found: what differs from the manifest, and what is not guarded."""
        gaps = gaps_of(self._adapter)
        news, self._known_gaps = gaps if gaps != self._known_gaps else (), gaps
        incidents: list[Incident] = []
        if not sealed.baseline.tensors and not gaps:
            incidents.append(self._casebook.note(finding(UNCOVERED, NOTHING)))
        for found in (*sealed.findings, *gap_findings(news)):
            if found.rule.startswith("WG4"):
                place = Place(found.location.tensor or "", aspect=ATTESTATION)
                incidents += self._casebook.take([Deviation(place, found.rule, found)])
            else:
                incidents.append(self._casebook.note(found))
        open_ = {i.tensor: i for i in incidents if i.code == DIFFERENT}
        for attempt in sealed.attempts:
            cause = open_.get(attempt.found.location.tensor)
            if cause is None:
                cause = self._casebook.note(attempt.found)
                incidents.append(cause)
            incidents += [self._casebook.note(told, cause.number) for told in attempt.outcomes]
        return incidents


def _with(
    cures: Sequence[_Cure], sealed: Sealed
) -> tuple[dict[str, TensorBaseline], list[Finding]]:
    """Return what was sealed, and found, but for the tensors that hold what they should now."""
    cured = {cure.entry.tensor.name: cure.entry for cure in cures if cure.held}
    left = [found for found in sealed.findings if found.location.tensor not in cured]
    return {**sealed.baseline.tensors, **cured}, left
