"""What a packed matrix is held to from the moment it was made, and how damage is undone.

The guard's own baseline, of the matrix's two live tensors: keyed digests find damage, residues
name the byte that changed where only one of a row and block did, and nothing is written that a
digest does not confirm.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightguard.guard import Schedule
from weightguard.guard.baseline import Baseline, Key, TensorBaseline
from weightguard.guard.mend import Diagnosis, Mender, Unmendable, diagnose
from weightguard.guard.schedule import BlockRef
from weightguard.guard.seal import seal
from weightguard_integrations.ternary.live import TernaryAdapter


@dataclass(frozen=True, slots=True)
class Copies:
    """Second copies of live tensors, by name: a golden copy as the guard knows them."""

    tensors: Mapping[str, NDArray[np.uint8]]

    def block(self, entry: TensorBaseline, ref: BlockRef) -> bytes | None:
        """See Golden."""
        copy = self.tensors.get(entry.tensor.name)
        return None if copy is None else copy[ref.start : ref.stop].tobytes()


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """Digests and residues of live tensors as they were made, and copies to repair from."""

    key: Key
    baseline: Baseline
    copies: Copies

    @classmethod
    def of(cls, live: TernaryAdapter, copies: Copies) -> PackedRecord:
        """Record what ``live`` holds now, which is known to be right."""
        key = Key()
        return cls(key, seal(live, key).baseline, copies)

    def damage(self, live: TernaryAdapter) -> list[tuple[BlockRef, Diagnosis]]:
        """Return the blocks whose digest is not the recorded one, and what changed in them."""
        found = []
        for ref in Schedule(self.baseline.sizes):
            entry = self.baseline.tensors[ref.tensor]
            data = live.read(ref.tensor, ref.start, ref.stop)
            if not entry.holds(ref.block, self.key.digest(data)):
                found.append((ref, diagnose(entry, ref, bytes(data), self.key)))
        return found

    def repair(self, live: TernaryAdapter) -> None:
        """Put right what residues or copies can; the rest stays as it is."""
        mender = Mender(live, self.key, self.copies)
        for ref, _ in self.damage(live):
            with suppress(Unmendable):
                mender.mend(self.baseline.tensors[ref.tensor], ref)
