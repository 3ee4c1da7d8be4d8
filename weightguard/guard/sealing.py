"""Sealing one adapter's tensors again and again, and taking down what each sealing found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from weightguard.finding import Finding
from weightguard.guard.adapter import Adapter, Gap
from weightguard.guard.baseline import Baseline, Key
from weightguard.guard.casebook import Casebook
from weightguard.guard.coverage import gap_findings, gaps_of
from weightguard.guard.incident import Incident
from weightguard.guard.ledger import Place
from weightguard.guard.mend import Golden
from weightguard.guard.originals import Originals
from weightguard.guard.scrub import Deviation
from weightguard.guard.seal import Sealed, seal
from weightguard.guard.settings import Settings
from weightguard.manifest import Manifest

ATTESTATION = "attestation"
"""Aspect of a place: whether what was sealed is what the manifest holds."""

Names: TypeAlias = Mapping[str, str]


class Sealing:
    """The sealings of one guard."""

    def __init__(
        self,
        adapter: Adapter,
        key: Key,
        golden: Golden | None,
        settings: Settings,
        casebook: Casebook,
    ):
        self._adapter, self._key, self._settings = adapter, key, settings
        self._originals = golden if isinstance(golden, Originals) else None
        self._casebook = casebook
        self._known_gaps: tuple[Gap, ...] = ()

    def seal(self, manifest: Manifest | None, names: Names | None) -> Sealed:
        """Read all live tensors once. See ``seal``."""
        told = self._settings
        return seal(
            self._adapter, self._key, manifest, names, told.threads, self._originals, told.pieces
        )

    def begin(self, baseline: Baseline, former: Baseline | None = None) -> None:
        """Strike what was open of a former baseline, but for what still is no better attested.

        ``former`` is what tensors that did not change are vouched for by, None where all are
        compared anew.
        """
        same = () if former is None else former.tensors.keys() - former.changed(baseline)
        self._casebook.begin_again({Place(name, aspect=ATTESTATION) for name in same})

    def incidents(self, findings: Iterable[Finding]) -> list[Incident]:
        """Take down what sealing found: what differs from the manifest, and what is not guarded."""
        incidents = []
        gaps = gaps_of(self._adapter)
        news, self._known_gaps = gaps if gaps != self._known_gaps else (), gaps
        for found in (*findings, *gap_findings(news)):
            if found.rule.startswith("WG4"):
                place = Place(found.location.tensor or "", aspect=ATTESTATION)
                incidents += self._casebook.take([Deviation(place, found.rule, found)])
            else:
                incidents.append(self._casebook.note(found))
        return incidents
