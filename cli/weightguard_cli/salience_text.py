"""What stands out in the weights, as text: super weights and outlier channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weightguard.salient import OutlierChannel, RecurringChannel, Salience, ScoreName, SuperWeight
from weightguard.units import counted
from weightguard_cli.escape import escape_name
from weightguard_cli.table import table_lines

MAX_SUPER_WEIGHTS = 8
MAX_CHANNELS = 5
"""Entries that are shown; JSON has all of them."""

_INDENT = "    "


def salience_lines(salience: Salience) -> Iterator[str]:
    """Yield the tables; nothing where nothing stands out."""
    if salience.super_weights:
        yield from _super_weights(salience.super_weights)
    if salience.recurring_channels:
        yield "Residual channels that are outliers again and again:"
        yield from _recurring(salience.recurring_channels[:MAX_CHANNELS])
    if salience.outlier_channels:
        total = counted(len(salience.outlier_channels), "outlier channel")
        yield f"Heaviest of {total}:"
        yield from _channels(salience.outlier_channels[:MAX_CHANNELS])


def _super_weights(weights: Sequence[SuperWeight]) -> Iterator[str]:
    shown = weights[:MAX_SUPER_WEIGHTS]
    yield f"Super weights ({len(shown)} of {len(weights)}; nominated ones are not proven):"
    headings = ("", "value", "column ratio", "path gain", "row heaviness", "weight")
    yield from table_lines([headings, *map(_weight, shown)], _INDENT)


def _weight(weight: SuperWeight) -> tuple[str, ...]:
    return (
        weight.status,
        f"{weight.value:.5g}",
        _score(weight, "column_ratio"),
        _score(weight, "path_gain"),
        "-" if weight.row_heaviness is None else f"{weight.row_heaviness:.2f}",
        f"{escape_name(weight.tensor)}[{','.join(map(str, weight.index))}]",
    )


def _score(weight: SuperWeight, name: ScoreName) -> str:
    score = weight.scores.get(name)
    return "-" if score is None else f"{score.score:.4g} (#{score.rank})"


def _recurring(channels: Sequence[RecurringChannel]) -> Iterator[str]:
    headings = ("channel", "tensors", "layers")
    rows = [(str(c.channel), f"{c.tensors} of {c.of}", _ranges(c.layers)) for c in channels]
    yield from table_lines([headings, *rows], _INDENT)


def _channels(channels: Sequence[OutlierChannel]) -> Iterator[str]:
    headings = ("heaviness", "greatest", "channel")
    rows = [
        (f"{c.heaviness:.4g}", f"{c.value:.5g}", f"{c.axis} {c.index} of {escape_name(c.tensor)}")
        for c in channels
    ]
    yield from table_lines([headings, *rows], _INDENT)


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers with runs drawn together: "0-5, 8, 10-14"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
