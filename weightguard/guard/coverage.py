"""How much of a live model the guard really watches, and what it does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

from weightguard.finding import Finding, finding
from weightguard.guard.adapter import Adapter, Gap, Incomplete
from weightguard.guard.incident import UNCOVERED
from weightguard.units import counted

Attestation: TypeAlias = Literal["attested", "transformed", "trusted-on-first-use"]
"""Bytes equal to the manifest's; a declared cast or fusion of such; or nobody vouched for them."""


class LiveCoverage(msgspec.Struct, frozen=True):
    """Live bytes by how they are watched; tied weights count once.

    ``attested``, ``transformed`` and ``trusted`` bytes are scrubbed. ``copied`` bytes run from a
    copy that is not, ``unreachable`` ones cannot be read at all; ``unknown`` counts gaps whose
    size is not known, and which no sum holds.
    """

    attested: int
    transformed: int
    trusted: int
    copied: int
    unreachable: int
    unknown: int
    gaps: tuple[Gap, ...]

    @property
    def covered(self) -> int:
        """Bytes that are scrubbed where they run."""
        return self.attested + self.transformed + self.trusted

    @property
    def total(self) -> int:
        """All live bytes of known size."""
        return self.covered + self.copied + self.unreachable

    @property
    def ratio(self) -> float:
        """Covered bytes of all, 0 without any; an upper bound where ``unknown`` is not 0."""
        return self.covered / self.total if self.total else 0.0


def live_coverage(
    sizes: Iterable[tuple[Attestation, int]], gaps: Iterable[Gap] = ()
) -> LiveCoverage:
    """Add up covered tensors, as (attestation, bytes), and gaps."""
    covered = {"attested": 0, "transformed": 0, "trusted-on-first-use": 0}
    for attestation, nbytes in sizes:
        covered[attestation] += nbytes
    listed = tuple(gaps)
    missing = {"copied": 0, "unreachable": 0}
    for gap in listed:
        missing[gap.kind] += gap.nbytes or 0
    return LiveCoverage(
        covered["attested"],
        covered["transformed"],
        covered["trusted-on-first-use"],
        missing["copied"],
        missing["unreachable"],
        sum(gap.nbytes is None for gap in listed),
        listed,
    )


def gaps_of(adapter: Adapter) -> tuple[Gap, ...]:
    """Return what the adapter cannot reach, as far as it knows."""
    return tuple(adapter.gaps()) if isinstance(adapter, Incomplete) else ()


def gap_findings(gaps: Sequence[Gap]) -> Iterator[Finding]:
    """Yield WG916 for the copied and for the unreachable weights, where there are any."""
    for kind in ("copied", "unreachable"):
        names = [gap for gap in gaps if gap.kind == kind]
        if names:
            nbytes = sum(gap.nbytes or 0 for gap in names)
            known = "" if all(gap.nbytes is not None for gap in names) else "at least "
            places = counted(len(names), "place")
            yield finding(
                UNCOVERED,
                f"{known}{nbytes} bytes of live weights in {places} are {kind}: "
                f"{names[0].name!r:.200}, {names[0].reason}",
                evidence={"names": [gap.name for gap in names[:16]]},
            )
