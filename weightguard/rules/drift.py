"""WG6xx: tensors beside those of a base, and how far they may be from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weightguard.drift import DriftLimits, OddValues, TensorChange, matches
from weightguard.finding import Evidence, Finding, finding
from weightguard.units import counted, listed

_OTHER = ("replaced", "reshaped")


def check_drift(changes: Iterable[TensorChange], limits: DriftLimits) -> Iterator[Finding]:
    """Yield a finding for each tensor that is farther from its base than ``limits`` allow.

    A tensor that may be replaced may change by any amount; in any other, NaN and infinities that
    the base does not have exceed every limit.
    """
    for change in changes:
        code_and_words = _violation(change, limits)
        if code_and_words is not None:
            code, words = code_and_words
            yield finding(
                code,
                words,
                file=None if change.new is None else change.new.file,
                tensor=change.tensor,
                element=change.first_place if change.status != "replaced" else None,
                evidence=_evidence(change),
            )


def _violation(change: TensorChange, limits: DriftLimits) -> tuple[str, str] | None:
    name = change.tensor
    if change.status == "added":
        allowed = matches(name, limits.added)
        return None if allowed else ("WG604", "the base does not have this tensor")
    if change.status == "removed":
        allowed = matches(name, limits.removed)
        return None if allowed else ("WG605", "the base has this tensor, the checkpoint does not")
    if change.status == "unchanged" or matches(name, limits.replaced):
        return None
    if not matches(name, limits.changed):
        return "WG603", f"this tensor may not change, and is {_words(change)}"
    if change.status in _OTHER:
        return "WG602", f"this tensor is {_words(change)}"
    return _too_far(change, limits)


def _too_far(change: TensorChange, limits: DriftLimits) -> tuple[str, str] | None:
    # no limit is far enough for NaN and infinities that appeared
    words = _broken(change)
    if words is None and limits.max_change is not None:
        words = _beyond(change, limits.max_change)
    return None if words is None else ("WG601", words)


def _broken(change: TensorChange) -> str | None:
    if change.appeared is not None:
        return f"{_odd(change.appeared)}, where the base has finite values"
    if change.status == "broken":
        return "more values are NaN or infinite than in the base"
    return None


def _beyond(change: TensorChange, limit: float) -> str | None:
    relative = change.relative_change
    if change.gone is not None:
        return f"finite values where the base has {_odd(change.gone)}"
    if relative is None:
        return "how far it is from the base cannot be measured"
    if relative <= limit:
        return None
    return (
        f"relative change {relative:.3g}, above the limit of {limit:g}; "
        f"the greatest is {change.greatest_change:.4g}"
    )


def _odd(values: OddValues) -> str:
    """Return "2 NaN and 1 infinity, the first at [3,5]"."""
    parts = [f"{values.nan:,} NaN"] if values.nan else []
    parts += [counted(values.inf, "infinity")] if values.inf else []
    return f"{listed(parts)}, the first at [{','.join(map(str, values.first))}]"


def _words(change: TensorChange) -> str:
    if change.status == "reshaped" and change.base and change.new:
        return f"reshaped from {list(change.base.shape)} to {list(change.new.shape)}"
    if change.status == "cast" and change.base and change.new:
        return f"cast from {change.base.dtype} to {change.new.dtype}"
    known, odd = change.relative_change, change.appeared
    measured = "" if known is None else f", relative change {known:.3g}"
    return change.status + measured + ("" if odd is None else f", with {_odd(odd)}")


def _evidence(change: TensorChange) -> Evidence:
    evidence: Evidence = {"status": change.status}
    for key in ("relative_change", "cosine", "changed", "scalars", "greatest_change"):
        value = getattr(change, key)
        if value is not None:
            # as text where JSON has no number for it
            evidence[key] = value if abs(value) != float("inf") else repr(value)
    for side, odd in (("appeared", change.appeared), ("gone", change.gone)):
        if odd is not None:
            counts = {f"nan_{side}": odd.nan, f"inf_{side}": odd.inf}
            evidence |= {key: count for key, count in counts.items() if count}
    base, new = change.base, change.new
    if base is not None and new is not None:
        for key in ("dtype", "shape", "min", "max", "rms", "nan", "inf"):
            pair = [getattr(side, key) for side in (base, new)]
            if pair[0] != pair[1] and None not in pair:
                evidence[key] = pair
    return evidence
