"""Fault campaign on checked products: flips bits everywhere, counts what was missed.

    python benchmarks/ternary_faults.py [--single 100000] [--multiple 20000] [--clean 1000000]

Every product with a fault is compared, bit by bit, with the same product without it. A fault is
*missed* when an output of a token is wrong and no alarm names the token. A fault in stored bytes
that leaves outputs right and raises no alarm (the activations it meets are zero) must be found
by ``check()``. Exits with 1 if anything was missed or any clean product raised an alarm.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weightguard_integrations.ternary import PackedInt8, PackedMatrix, PackedTernary

SHAPES = ((1, 16), (16, 16), (17, 33), (64, 64), (40, 260), (250, 96), (640, 128), (96, 1000))
TOKENS = (1, 2, 5, 8, 11)
SITES = ("weights", "check rows", "scales", "activations", "accumulators", "token scales")
DRILL_SITES = {"activations": 0, "accumulators": 1, "token scales": 2}
MAX_FLIPS = 6
CLEAN_TOKENS = 256


@dataclass
class Tally:
    """What a campaign counted."""

    faults: Counter[str] = field(default_factory=Counter)
    alarmed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    silent: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    unscrubbed: int = 0
    clean: int = 0
    false_alarms: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing was missed and nothing alarmed for nothing."""
        return not (self.missed or self.unscrubbed or self.false_alarms)


class Bench:
    """One packed matrix with one batch, and its outputs without a fault."""

    def __init__(self, rng: np.random.Generator, index: int):
        self._rng = rng
        shape = SHAPES[index % len(SHAPES)]
        tokens = TOKENS[index // len(SHAPES) % len(TOKENS)]
        each = bool(rng.integers(2))
        scale = rng.random(shape[0] if each else 1, np.float32) + np.float32(0.01)
        if index % 3 == 2:
            weight = rng.integers(-128, 128, shape, np.int8)
            self.matrix: PackedMatrix = PackedInt8.from_int8(weight, scale)
        else:
            self.matrix = PackedTernary.from_int8(rng.integers(-1, 2, shape, np.int8), scale)
        x = rng.standard_normal((tokens, shape[1]), np.float32)
        x[rng.random(x.shape) < rng.choice([0, 0.3, 0.9])] = 0
        self.x = x
        self.clean, alarms = self.product([])
        assert alarms is None

    def product(
        self, drills: list[tuple[int, int, int, int]]
    ) -> tuple[NDArray[np.float32], bytes | None]:
        """Return outputs and alarms of one product."""
        out = np.empty((len(self.x), self.matrix.shape[0]), np.float32)
        alarms = self.matrix._native.multiply(
            self.x.ctypes.data, 0, len(self.x), out.ctypes.data, 0, True, drills
        )
        return out, alarms

    def fault(self, site: str, flips: int, tally: Tally) -> None:
        """Flip ``flips`` different bits at ``site``, judge the product, and put them back."""
        drills: list[tuple[int, int, int, int]] = []
        stored: list[tuple[NDArray[np.uint8], int, int]] = []
        seen: set[tuple[str, int, int]] = set()
        while len(seen) < flips:
            here = SITES[self._rng.integers(len(SITES))] if site == "mixed" else site
            self._flip(here, seen, drills, stored)
        for view, at, mask in stored:
            view[at] ^= mask
        out, alarms = self.product(drills)
        self._judge(site, out, alarms, tally, stored=bool(stored))
        for view, at, mask in stored:
            view[at] ^= mask

    def _flip(
        self,
        site: str,
        seen: set[tuple[str, int, int]],
        drills: list[tuple[int, int, int, int]],
        stored: list[tuple[NDArray[np.uint8], int, int]],
    ) -> None:
        rng, geometry = self._rng, self.matrix.geometry
        if site in DRILL_SITES:
            token = int(rng.integers(len(self.x)))
            limits = {
                "activations": (geometry.columns, 8),
                "accumulators": (geometry.all_groups * 16, 32),
                "token scales": (1, 32),
            }
            places, bits = limits[site]
            at, bit = int(rng.integers(places)), int(rng.integers(bits))
            if (site, token * places + at, bit) not in seen:
                seen.add((site, token * places + at, bit))
                drills.append((DRILL_SITES[site], token, at, 1 << bit))
            return
        view = self.matrix.packed
        if site == "scales":
            view = self.matrix.scales.view(np.uint8)
            at = int(rng.integers(len(view)))
        else:
            wanted = site == "check rows"
            at = int(rng.integers(len(view)))
            while geometry.place(at).check != wanted:
                at = int(rng.integers(len(view)))
        bit = int(rng.integers(8))
        if (site, at, bit) not in seen:
            seen.add((site, at, bit))
            stored.append((view, at, 1 << bit))

    def _judge(
        self,
        site: str,
        out: NDArray[np.float32],
        alarms: bytes | None,
        tally: Tally,
        *,
        stored: bool,
    ) -> None:
        wrong = (out.view(np.uint32) != self.clean.view(np.uint32)).any(axis=1)
        alarmed = np.frombuffer(alarms or bytes(len(wrong)), np.uint8) != 0
        tally.faults[site] += 1
        tally.alarmed[site] += bool(alarmed.any())
        tally.wrong[site] += bool(wrong.any())
        tally.missed += bool((wrong & ~alarmed).any())
        if not alarmed.any() and not wrong.any():
            tally.silent[site] += 1
            if stored and not self.matrix.check().findings:
                tally.unscrubbed += 1


def clean_products(rng: np.random.Generator, products: int, tally: Tally) -> None:
    """Run products without a fault, of many kinds of activations."""
    while tally.clean < products:
        bench = Bench(rng, int(rng.integers(1 << 20)))
        columns = bench.matrix.shape[1]
        x = rng.standard_normal((CLEAN_TOKENS, columns), np.float32)
        x *= np.float32(10) ** rng.integers(-8, 9, (CLEAN_TOKENS, 1)).astype(np.float32)
        x[0], x[1], x[2, 0], x[3, 0], x[4] = 0, 1, np.nan, np.inf, -3.0e38
        bench.x = x
        for _ in range(4):
            rng.shuffle(x, axis=1)
            alarms = bench.product([])[1]
            tally.clean += CLEAN_TOKENS
            tally.false_alarms += sum(map(bool, alarms or b""))


def campaign(single: int, multiple: int, clean: int, seed: int = 1) -> Tally:
    """Count ``single`` one-bit faults, ``multiple`` many-bit faults and ``clean`` products."""
    rng, tally = np.random.default_rng(seed), Tally()
    index = 0
    while sum(tally.faults.values()) < single:
        bench = Bench(rng, index)
        for n in range(min(600, single - sum(tally.faults.values()))):
            bench.fault(SITES[n % len(SITES)], 1, tally)
        index += 1
    while sum(tally.faults.values()) < single + multiple:
        bench = Bench(rng, index)
        kinds = (*SITES[:5], "mixed")
        for n in range(min(240, single + multiple - sum(tally.faults.values()))):
            bench.fault(kinds[n % len(kinds)], int(rng.integers(2, MAX_FLIPS + 1)), tally)
        index += 1
    clean_products(rng, clean, tally)
    return tally


def show(tally: Tally) -> None:
    print(f"{'flipped':14}{'faults':>9}{'alarms':>9}{'wrong':>9}{'silent':>9}")
    for site in tally.faults:
        print(
            f"{site:14}{tally.faults[site]:9}{tally.alarmed[site]:9}"
            f"{tally.wrong[site]:9}{tally.silent[site]:9}"
        )
    print(f"wrong outputs missed                      {tally.missed}")
    print(f"silent faults in stored bytes not scrubbed {tally.unscrubbed}")
    print(f"false alarms in {tally.clean} clean products  {tally.false_alarms}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--single", type=int, default=100_000)
    parser.add_argument("--multiple", type=int, default=20_000)
    parser.add_argument("--clean", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    start = time.perf_counter()
    tally = campaign(asked.single, asked.multiple, asked.clean, asked.seed)
    show(tally)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0 if tally.sound else 1


if __name__ == "__main__":
    sys.exit(main())
