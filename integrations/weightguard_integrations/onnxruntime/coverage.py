"""How much of a session's weights is watched, by the form that they run in."""

from __future__ import annotations

import msgspec

from weightguard.guard.coverage import LiveCoverage
from weightguard_integrations.onnxruntime.cache import Entry
from weightguard_integrations.onnxruntime.memory import Memory


class SessionCoverage(msgspec.Struct, frozen=True):
    """Live bytes of a session by form, next to what the guard says of them.

    ``live`` weights are watched as they are in the graph that runs, ``packed`` ones in the form
    that a kernel made of them. ``folded`` are the bytes of model weights that no live weight is
    named after: the optimiser made others of them. ``unreachable`` bytes run from copies that
    nothing can read, so that only the canary watches them. ``untaken`` counts packed bytes
    that are watched, but lie on branches that no run of the canary took: that they are what runs
    was not shown, and the canary tells nothing of them. The gaps of ``guard`` name them.
    """

    mode: str
    live: int
    packed: int
    folded: int
    unreachable: int
    untaken: int
    guard: LiveCoverage


def session_coverage(
    mode: str, memory: Memory, entry: Entry | None, guard: LiveCoverage
) -> SessionCoverage:
    """Add up the live weights of a session."""
    sizes = {"packed": 0, "plain": 0, "source": 0}
    for region in memory.regions.values():
        sizes[region.form] += region.tensor.nbytes
    return SessionCoverage(
        mode=mode,
        live=sizes["plain"] + sizes["source"],
        packed=sizes["packed"],
        folded=0 if entry is None else entry.folded[1],
        unreachable=guard.unreachable + guard.copied,
        untaken=sum(r.tensor.nbytes for r in memory.regions.values() if not r.read),
        guard=guard,
    )
