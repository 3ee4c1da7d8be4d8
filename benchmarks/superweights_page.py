"""The page of the super weight experiments: tables and plots."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from superweights_flips import CHECKS, HARM, Flip
from superweights_model import COLUMNS, HARMLESS_SPIKE, LAYER, MAX_PERPLEXITY, ROW

from weightguard import SuperWeight


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured."""

    nominated: Sequence[SuperWeight]
    ablated: Sequence[tuple[str, float, float, bool]]
    spikes: Sequence[tuple[int, float]]
    zeroed: Sequence[tuple[str, float]]
    scaled: Sequence[tuple[float, float, float]]
    ternary: Sequence[tuple[str, float]]
    flips: Sequence[Flip]
    costs: dict[str, str]
    texts: Sequence[int]
    short_texts: Sequence[int]
    short_perplexity: float


def write_page(found: Evidence, out: Path) -> None:
    """Write page, plots and flips into a folder."""
    write_flips(found.flips, out / "superweights-flips.csv")
    plot_spikes(found.spikes, out / "spikes.png")
    plot_scaling(found.scaled, out / "scaling.png")
    plot_bits(found.flips, found.short_perplexity, out / "bits.png")
    plot_coverage(found.flips, out / "coverage.png")
    page = PAGE.format(
        count=len(found.flips),
        torch=torch.__version__.partition("+")[0],
        tokens=sum(n - 1 for n in found.texts),
        texts=len(found.texts),
        short=sum(n - 1 for n in found.short_texts),
        nominated=nominated_table(found.nominated),
        ablations=ablation_table(found.ablated),
        zeroing=table(("zeroed", "perplexity"), perplexities(found.zeroed)),
        scaling=table(
            ("factor", f"[{ROW},{COLUMNS[0]}] scaled", "both scaled"),
            [(f, perplexity_text(a), perplexity_text(b)) for f, a, b in found.scaled],
        ),
        ternary=table(("", "perplexity"), perplexities(found.ternary)),
        harmful=sum(f.harmful for f in found.flips),
        bits=harmful_bits(found.flips),
        coverage=table(
            ("check", "harmful seen, bf16", "harmful seen, fp32", "harmless seen", "cost"),
            coverage_rows(found.flips, found.costs),
        ),
    )
    (out / "superweights.md").write_text(page)


def perplexities(rows: Iterable[tuple[str, float]]) -> list[tuple[str, str]]:
    return [(words, perplexity_text(value)) for words, value in rows]


def plot_spikes(spikes: Sequence[tuple[int, float]], path: Path) -> None:
    layers = [layer for layer, _ in spikes]
    values = [value for _, value in spikes]
    colours = ["#c0392b" if n == LAYER else "#7f8c8d" for n in layers]
    colours[HARMLESS_SPIKE[0]] = "#2980b9"
    _, axes = plt.subplots(figsize=(7.2, 3.2))
    axes.bar(layers, values, color=colours)
    axes.set(yscale="log", xlabel="layer", ylabel="largest |W x| of the spike",
             title="Spike by layer: zeroing red ruins the model, blue does nothing")  # fmt: skip
    save(path)


def plot_bits(flips: Sequence[Flip], baseline: float, path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.4), sharey=True)
    for axes, dtype, width in zip(panels, ("bf16", "fp32"), (16, 32), strict=True):
        for aim, colour in (
            ("uniform", "#7f8c8d"),
            ("exponent", "#2980b9"),
            ("outlier", "#c0392b"),
        ):
            some = [f for f in flips if f.dtype == dtype and f.aim == aim]
            axes.scatter([f.bit for f in some], [f.perplexity / baseline for f in some],
                         s=14, alpha=0.7, color=colour, label=aim)  # fmt: skip
        axes.axhline(math.exp(HARM), color="black", linewidth=0.8, linestyle=":")
        axes.set(yscale="log", xlabel=f"flipped bit of {dtype}", xlim=(-1, width))
    panels[0].set_ylabel("perplexity, times the sound model's")
    panels[0].legend(fontsize=8)
    figure.suptitle("Effect by bit: above the dotted line a flip is harmful")
    save(path)


def plot_coverage(flips: Sequence[Flip], path: Path) -> None:
    harmful = [f for f in flips if f.harmful]
    harmless = [f for f in flips if not f.harmful]
    names = list(CHECKS)[::-1]
    _, axes = plt.subplots(figsize=(7.2, 3.8))
    for offset, group, colour, label in (
        (0.2, harmful, "#c0392b", f"harmful flips ({len(harmful)})"),
        (-0.2, harmless, "#7f8c8d", f"harmless flips ({len(harmless)})"),
    ):
        shares = [100 * sum(n in f.seen for f in group) / max(len(group), 1) for n in names]
        axes.barh([k + offset for k in range(len(names))], shares, 0.38, color=colour, label=label)
    axes.set_yticks(range(len(names)), [CHECKS[n] for n in names], fontsize=8)
    axes.set(xlabel="seen, percent", xlim=(0, 100), title="Coverage by check")
    axes.legend(fontsize=8, loc="lower right")
    save(path)


def plot_scaling(rows: Sequence[tuple[float, float, float]], path: Path) -> None:
    _, axes = plt.subplots(figsize=(7.2, 3.2))
    factors = [r[0] for r in rows]
    axes.plot(factors, [r[1] for r in rows], "o-", color="#2980b9", label=f"[{ROW},{COLUMNS[0]}]")
    axes.plot(factors, [r[2] for r in rows], "o-", color="#c0392b", label="both super weights")
    axes.set(yscale="log", xlabel="super weight, times its value", ylabel="perplexity",
             title="Scaling the super weights")  # fmt: skip
    axes.legend(fontsize=8)
    save(path)


def save(path: Path) -> None:
    plt.tight_layout()
    plt.savefig(path, dpi=110, metadata={"Software": None})
    plt.close()


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def perplexity_text(value: float) -> str:
    return "above 10^9" if value >= MAX_PERPLEXITY else f"{value:,.1f}"


def coverage_rows(flips: Sequence[Flip], spent: dict[str, str]) -> Iterator[Sequence[object]]:
    for name, words in CHECKS.items():
        cells = []
        for dtype in ("bf16", "fp32"):
            group = [f for f in flips if f.dtype == dtype and f.harmful]
            cells.append(f"{sum(name in f.seen for f in group)} of {len(group)}")
        harmless = [f for f in flips if not f.harmful]
        cells.append(f"{sum(name in f.seen for f in harmless)} of {len(harmless)}")
        yield words, *cells, spent[name]


def harmful_bits(flips: Sequence[Flip]) -> str:
    bits = sorted({f.bit for f in flips if f.harmful}, reverse=True)
    rows = [
        (
            dtype,
            *(sum(f.harmful and f.dtype == dtype and f.bit == bit for f in flips) for bit in bits),
        )
        for dtype in ("bf16", "fp32")
    ]
    return table(("bit", *map(str, bits)), rows)


def nominated_table(weights: Sequence[SuperWeight]) -> str:
    rows = [
        (f"`{w.tensor}[{','.join(map(str, w.index))}]`", f"{w.value:.4g}",
         *(f"{w.scores[n].score:g} (rank {w.scores[n].rank})" if n in w.scores else "-"
           for n in ("column_ratio", "path_gain")), w.row_heaviness)
        for w in weights
    ]  # fmt: skip
    return table(("weight", "value", "column ratio", "path gain", "row heaviness"), rows)


def ablation_table(ablated: Sequence[tuple[str, float, float, bool]]) -> str:
    """Show what is confirmed, the greatest effects that are not, and the harmless spike."""
    single = [a for a in ablated if not a[3] and " and " not in a[0]]
    harmless = [a for a in single[2:] if a[0].endswith("blk.28.ffn_down.weight[507,678]")]
    shown = [*(a for a in ablated if a[3]), *single[:2], *harmless]
    rows = [(f"`{w}`", f"{s:,.0f}", f"{c:+.3f}", "yes" if ok else "no") for w, s, c, ok in shown]
    return table(("zeroed", "spike", "loss change, nats a token", "confirmed"), rows)


def write_flips(flips: Iterable[Flip], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(next(iter(flips)))), lineterminator="\n")
        writer.writeheader()
        for flip in flips:
            rounded = replace(flip, perplexity=float(f"{flip.perplexity:.6g}"))
            writer.writerow({**asdict(rounded), "seen": " ".join(flip.seen)})


PAGE = """# Super weights and single bit flips: evidence

    python benchmarks/superweights.py --flips {count}

writes this page. Model: SmolLM2-135M-Instruct (the 4-bit GGUF, dequantised and rounded to bf16),
run in float32 on two CPU cores, torch {torch}. Perplexity over {tokens} tokens of {texts} English
texts (`weightguard_integrations/torch/texts.json`); flips are judged on {short} tokens.

## Which weights the model hangs on

From weights alone, before the model runs:

{nominated}

By running it: the search zeroes what makes the spikes, alone and in pairs of one row. A loss
change of 0.1 nats a token beyond its parts confirms.

{ablations}

![Spike by layer](spikes.png)

The spike of layer 28 is nearly as large and harmless: spike size proves nothing, ablation does.

## What zeroing them does

{zeroing}

![Scaling](scaling.png)

{scaling}

Restoring two scalars after quantising one layer:

{ternary}

## What a flipped bit does, and who sees it

{count} single-bit flips, half in bf16 and half in fp32; half of each uniform over all weights and
bits, a quarter at exponent bits of any weight, a quarter at exponent bits of nominated super
weights. {harmful} are harmful: they raise perplexity by over 10 %. Every flip is a line of
[superweights-flips.csv](superweights-flips.csv). The harmful ones by bit:

{bits}

![Effect by bit](bits.png)

{coverage}

![Coverage by check](coverage.png)

## Which check to switch on

- **The digest**, always: it alone sees every flip, harmless ones too, and says nothing about harm.
  That it sees every flip is no measurement: different bytes have different digests.
- **Extrema or row maxima** between scrubs: they see a value that is raised beyond its tensor or
  row, which is most of what ruins a model, and a greatest one that shrinks. What they miss are
  super weights that are not the greatest of their row.
- **The canary** where copies of the weights are out of reach of digests: bit for bit on the same
  stack, and beyond its tolerance on any. It sees harm, and much that is harmless.
- **Bands and bounds** look at prompts that are served anyway. A lost super weight makes activations
  smaller: only the band sees it, the bounds do not. The cost above is that of calibration's whole
  profile, medians included.
- **NaN checks and super-weight bits are no coverage of bit flips.** The first see few of the
  harmful flips or none. The second see the handful of weights that are recorded, every time: their
  share above is that of the flips that were aimed at them.
"""
