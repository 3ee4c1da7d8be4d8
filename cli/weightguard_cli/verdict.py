"""The verdict in words: what the findings amount to, and what nobody looked at."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from weightguard.catalogue import Severity
from weightguard.finding import Coverage, Report
from weightguard.units import byte_size, counted, listed


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word, the sentence behind it, and whether it is good news."""

    word: str
    sentence: str
    kind: str

    def __str__(self) -> str:
        return f"{self.word}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Scope:
    """What was asked of the report: whether equality was at stake, and what was left out.

    ``unchecked`` names what the report does not cover; ``weights`` is the identity of the
    manifest's weights where there is one; ``signed`` says that a signature was demanded.
    """

    against_manifest: bool
    unchecked: tuple[str, ...] = ()
    weights: str | None = None
    signed: bool = False


_EQUALITY = ("WG305", "WG306", "WG4")
"""Rules that compare with a manifest."""

_DEMANDS = ("WG51", "WG6")
"""Rules of what a policy demands beyond sound weights."""

_UNFINISHED = "WG123"
"""The rule of a repair in place that was interrupted."""

_TRUSTED = "WG519"
"""The rule of a shard that was not read: the trust cache vouches for it."""

_NOT_READ = frozenset({"WG108", "WG116", "WG119"})
"""Rules that leave a tensor out though nothing shows that it is damaged."""


def verdict(report: Report, scope: Scope) -> Verdict:
    """Return what a report amounts to."""
    if not report.complete:
        read = report.coverage
        how_far = f"{read.tensors_checked} of {counted(read.tensors_total, 'tensor')} checked"
        tail = f"; {how_far}" if read.tensors_total else ""
        return Verdict("UNREADABLE", f"{_count(report)}{tail}", "critical")
    if report.at_least(Severity.ERROR):
        return _bad(report)
    if report.at_least(Severity.WARNING):
        return Verdict("SUSPECT", _count(report), "warning")
    if not report.coverage.tensors_total and not scope.against_manifest:
        return Verdict("EMPTY", "no tensor was there to be checked", "warning")
    return _good(report, scope)


def coverage_words(read: Coverage) -> str:
    """Return how much was read, and what is not known of the size of what was not."""
    unread = read.tensors_unread
    unknown = f"; {counted(unread, 'tensor')} more of unknown size" if unread else ""
    return (
        f"{read.tensors_checked:,} of {counted(read.tensors_total, 'tensor')}, "
        f"{byte_size(read.bytes_checked)} of {byte_size(read.bytes_total)}{unknown}"
    )


def _bad(report: Report) -> Verdict:
    graver = [f for f in report.at_least(Severity.ERROR) if f.rule not in _NOT_READ]
    if not graver:
        return Verdict("UNSUPPORTED", _unread(report) or _count(report), "bad")
    if any(f.rule.startswith("WG50") for f in graver):
        return Verdict("UNTRUSTED", _count(report), "bad")
    if all(f.rule == _UNFINISHED for f in graver):
        return Verdict("UNFINISHED", _count(report), "bad")
    if all(f.rule.startswith(_DEMANDS) for f in graver):
        return Verdict("REFUSED", _count(report), "bad")
    equality_only = all(f.rule.startswith(_EQUALITY) for f in graver)
    return Verdict("DIFFERENT" if equality_only else "DAMAGED", _count(report), "bad")


def _good(report: Report, scope: Scope) -> Verdict:
    tail = f", {_count(report)}" if report.findings else ""
    trusted = any(found.rule == _TRUSTED for found in report.findings)
    if scope.against_manifest and not trusted:
        number = report.coverage.tensors_checked
        which = " that can be read" if report.coverage.tensors_unread else ""
        those = (
            f"all {number:,} tensors{which} are those"
            if number != 1
            else f"the one tensor{which} is that"
        )
        signed = ", and all files are signed by whom you trust" if scope.signed else ""
        return Verdict("EQUAL", f"{those} of the manifest{signed}{tail}", "good")
    return Verdict("SOUND", f"nothing above info{tail}" if tail else "no findings", "good")


def _unread(report: Report) -> str:
    left_out = report.coverage.tensors_unread
    total = counted(report.coverage.tensors_total, "tensor")
    return f"{left_out:,} of {total} could not be read" if left_out else ""


def _count(report: Report) -> str:
    counts = Counter(found.severity for found in report.findings)
    parts = [f"{counts[s.label]} {s.label}" for s in reversed(Severity) if counts[s.label]]
    noun = "finding" if len(report.findings) == 1 else "findings"
    return f"{listed(parts) or 'no'} {noun}{_where(report)}"


def _where(report: Report) -> str:
    """Return how many tensors have findings; of how many only where all of them were read."""
    tensors = {f.location.tensor for f in report.findings if f.location.tensor is not None}
    if not tensors or not report.coverage.tensors_total:
        return ""
    if tensors <= {tensor.name for tensor in report.ranges}:
        return f" in {len(tensors):,} of {counted(report.coverage.tensors_total, 'tensor')}"
    return f" in {counted(len(tensors), 'tensor')}"
