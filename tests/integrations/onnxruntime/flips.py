"""Bits flipped in the packed weights of a session, and what its guard says and restores."""

from __future__ import annotations

from collections import Counter

import numpy as np

from weightguard.guard import LiveTensor
from weightguard.scan.digest import BLOCK_BYTES
from weightguard_integrations.onnxruntime import GuardedSession

PER_BLOCK = 16
"""Rows of a block that are damaged at once: as many as one incident lists."""


def packed(session: GuardedSession) -> list[LiveTensor]:
    regions = session.adapter.memory.regions.values()
    return [region.tensor for region in regions if region.form == "packed"]


def flip_and_repair(session: GuardedSession, flips: int, seed: int) -> int:
    """Flip bits of packed weights, in rounds; return how many were found, located and repaired.

    Raises AssertionError where a byte is not what it was in the end.
    """
    generator, tensors = np.random.default_rng(seed), packed(session)
    clean = {t.name: bytes(session.adapter.read(t.name, 0, t.nbytes)) for t in tensors}
    flipped = found = 0
    while flipped < flips:
        bits = _drawn(tensors, flips - flipped, generator)
        for tensor, bit in bits:
            old = session.adapter.read(tensor.name, bit // 8, bit // 8 + 1)[0]
            session.adapter.write(tensor.name, bit // 8, bytes([old ^ 1 << bit % 8]))
        before = len(session.incidents)
        assert session.guard.check().findings == ()
        expected = Counter((tensor.name, bit // 8, bit % 8) for tensor, bit in bits)
        found += (expected & _located(session, before)).total()
        flipped += len(bits)
    for name, data in clean.items():
        assert bytes(session.adapter.read(name, 0, len(data))) == data, name
    return found


def _drawn(
    tensors: list[LiveTensor], count: int, generator: np.random.Generator
) -> list[tuple[LiveTensor, int]]:
    """Return bits to flip, at most PER_BLOCK a block, no two in a row of it."""
    weights = np.array([tensor.nbytes for tensor in tensors], float)
    chosen: dict[tuple[str, int], set[int]] = {}
    bits: list[tuple[LiveTensor, int]] = []
    blocks = sum(-(-tensor.nbytes // BLOCK_BYTES) for tensor in tensors)
    for _ in range(min(20 * count, 4 * PER_BLOCK * blocks)):
        tensor = tensors[generator.choice(len(tensors), p=weights / weights.sum())]
        bit = int(generator.integers(8 * tensor.nbytes))
        rows = chosen.setdefault((tensor.name, bit // 8 // BLOCK_BYTES), set())
        row = bit // 8 // tensor.layout.row_bytes
        if row not in rows and len(rows) < PER_BLOCK:
            rows.add(row)
            bits.append((tensor, bit))
            if len(bits) == count:
                break
    return bits


def _located(session: GuardedSession, before: int) -> Counter[tuple[str, int, int]]:
    """Return the (tensor, byte, bit) that incidents after the first ``before`` name as repaired."""
    return Counter(
        (
            incident.tensor or "",
            element["index"][0] * _row_bytes(session, incident.tensor)
            + element["index"][-1] * (len(element["index"]) > 1),
            element["flipped_bits"][0],
        )
        for incident in session.incidents[before:]
        if incident.code == "WG901"
        for element in incident.finding.evidence["elements"]
        if element["confirmed"]
    )


def _row_bytes(session: GuardedSession, name: str | None) -> int:
    tensor = session.adapter.describe(name or "")
    assert tensor is not None
    return tensor.shape[-1] if len(tensor.shape) > 1 else 1
