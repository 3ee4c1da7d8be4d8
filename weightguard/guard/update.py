"""A declared update: what it changed, and what goes on being vouched for as before."""

from __future__ import annotations

from weightguard.finding import Finding, finding
from weightguard.guard.baseline import Baseline
from weightguard.guard.discrepancies import MAX_LISTED, unattested
from weightguard.guard.incident import DECLARED_UPDATE
from weightguard.guard.seal import Sealed


def kept(former: Baseline, new: Baseline) -> Sealed:
    """Return ``new``, in which tensors that did not change keep what vouched for them."""
    entries = []
    for name, entry in new.tensors.items():
        old = former.tensors.get(name)
        same = old is not None and entry.equals(old)
        entries.append(entry.vouched_like(old) if old is not None and same else entry)
    changed = [entry for entry in entries if entry.tensor.name in set(former.changed(new))]
    return Sealed(Baseline.of(entries), tuple(unattested(changed, None)))


def what_changed(former: Baseline, new: Baseline) -> Finding:
    """Return WG903, which says what changed, and of that what the runtime did not count."""
    changed = former.changed(new)
    unaccounted = [name for name in changed if former.same_token(new, name)]
    return finding(
        DECLARED_UPDATE,
        f"{len(changed)} of {len(new.tensors)} live tensors changed",
        evidence={"tensors": changed[:MAX_LISTED], "unaccounted": unaccounted[:MAX_LISTED]},
    )
