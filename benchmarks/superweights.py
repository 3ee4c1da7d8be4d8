"""What super weights and single bit flips do to a real model, and which check sees them.

    python benchmarks/superweights.py [--flips 512] [--out docs/evidence]

Runs SmolLM2-135M-Instruct, rounded to bf16, in float32 on the CPU. Writes a page with tables, plots
and one line for every flip. Needs the development environment (torch, transformers, matplotlib);
about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib as mpl
import torch
from superweights_flips import Flip, costs, draw_flips, run_flip
from superweights_model import SEED, Bench, capped, scaling, search, spikes, ternary, zeroing
from superweights_page import Evidence, write_page


def gather(bench: Bench, count: int) -> Evidence:
    """Run every experiment; the model is afterwards what it was."""
    before = bench.perplexity()
    found = Evidence(
        bench.manifest.document.salience.super_weights,
        search(bench),
        spikes(bench),
        zeroing(bench),
        scaling(bench),
        ternary(bench),
        flips(bench, count),
        costs(bench),
        [len(text) for text in bench.texts],
        [len(text) for text in bench.short],
        capped(bench.short_loss),
    )
    if bench.perplexity() != before:
        raise RuntimeError("the model is not what it was: a change was not undone")
    return found


def flips(bench: Bench, count: int) -> list[Flip]:
    done = []
    for drawn in draw_flips(bench, count):
        done.append(run_flip(bench, *drawn))
        if sys.stderr.isatty():
            print(f"\r{len(done)} of {count} flips", end="", file=sys.stderr)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("docs/evidence"))
    options = parser.parse_args()
    mpl.use("Agg")
    torch.manual_seed(SEED)
    options.out.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        write_page(gather(Bench(), options.flips), options.out)


if __name__ == "__main__":
    main()
