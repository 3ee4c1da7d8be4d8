"""A diff as text for people: counts, a table of tensors, what moved, what limits forbid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from weightguard.diff import Diff, Move
from weightguard.drift import Side, Status, TensorChange
from weightguard.finding import Finding
from weightguard.units import counted, listed
from weightguard_cli.escape import escape_name, escape_text, guard_lines
from weightguard_cli.style import Style

MAX_ROWS = 200
"""Tensors that are listed, and things that moved; JSON has them all."""

_ORDER: tuple[Status, ...] = (
    "replaced",
    "reshaped",
    "removed",
    "added",
    "fine-tuned",
    "changed",
    "cast",
    "unchanged",
)
_KINDS = {"replaced": "error", "reshaped": "error", "removed": "error", "added": "warning"}
_HEAD = ("status", "rel. change", "cosine", "changed", "rms", "extrema", "tensor")


def diff_text(found: Diff, style: Style, show_all: bool) -> str:
    """Return the diff as text that ends with a newline."""
    lines = [*_head(found, style)]
    listed_ones = [c for c in found.tensors if show_all or c.status != "unchanged"]
    listed_ones.sort(key=lambda c: (_ORDER.index(c.status), -(c.relative_change or 0), c.tensor))
    if listed_ones:
        lines += ["", *_table(listed_ones[:MAX_ROWS], style)]
    if len(listed_ones) > MAX_ROWS:
        lines.append(f"and {len(listed_ones) - MAX_ROWS:,} more (use --format json)")
    if found.moved:
        lines += ["", *_moved(found.moved)]
    if found.findings:
        lines += ["", *_findings(found.findings, style)]
    return guard_lines("\n".join(lines)) + "\n"


def _head(found: Diff, style: Style) -> Iterator[str]:
    counts = Counter(change.status for change in found.tensors)
    words = [f"{counts[status]:,} {status}" for status in _ORDER if counts[status]]
    same = len(found.tensors) == counts["unchanged"]
    verdict = "SAME" if same else "DIFFERENT"
    total = counted(len(found.tensors), "tensor")
    yield style.paint(f"{verdict}: {total}, {listed(words) or 'none'}", "good" if same else "info",
                      bold=True)  # fmt: skip
    yield f"  base {escape_name(found.base)}"
    yield f"  new  {escape_name(found.new)}"
    if found.measured == "manifests":
        yield "  by digests and statistics of manifests: how far a change goes is not known"


def _table(changes: Sequence[TensorChange], style: Style) -> Iterator[str]:
    rows = [_HEAD, *(_row(change) for change in changes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        if number == 0:
            yield style.strong("  ".join([*cells, row[-1]]))
            continue
        kind = _KINDS.get(row[0])
        cells[0] = style.paint(cells[0], kind) if kind else cells[0]
        yield "  ".join([*cells, row[-1]])


def _row(change: TensorChange) -> tuple[str, ...]:
    lost = "" if True else ""
    share = "" if change.changed is None else f"{change.changed:,} of {change.scalars:,}{lost}"
    return (
        change.status,
        _number(change.relative_change, ".3g"),
        _number(change.cosine, ".6f"),
        share,
        _both(change, lambda side: _number(side.rms, ".4g")),
        _both(change, _range),
        escape_name(change.tensor) + _kind_of(change),
    )


def _kind_of(change: TensorChange) -> str:
    """Return dtype and shape where they differ."""
    base, new = change.base, change.new
    if base is None or new is None:
        side = base or new
        assert side is not None
        return f" {side.dtype} {_shape(side)}"
    dtype = "" if base.dtype == new.dtype else f" {base.dtype} -> {new.dtype}"
    shape = "" if base.shape == new.shape else f" {_shape(base)} -> {_shape(new)}"
    return dtype + shape


def _shape(side: Side) -> str:
    return "x".join(map(str, side.shape)) or "scalar"


def _both(change: TensorChange, words: Callable[[Side], str]) -> str:
    sides = [words(side) for side in (change.base, change.new) if side is not None]
    if not any(sides) or change.base is None or change.new is None:
        return "".join(sides)
    return sides[0] if sides[0] == sides[1] else " -> ".join(sides)


def _range(side: Side) -> str:
    if side.min is None or side.max is None:
        return ""
    return f"{side.min:.4g}..{side.max:.4g}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _moved(moves: Sequence[Move]) -> Iterator[str]:
    yield "Super weights and outlier channels that moved:"
    words = {"base": "no longer stands out", "new": "stands out now", "both": ""}
    for move in moves[:MAX_ROWS]:
        index, place = ",".join(map(str, move.index)), escape_name(move.tensor)
        single = move.kind == "super-weight"
        what = f"super weight {place}[{index}]" if single else f"{move.kind} {index} of {place}"
        old, new = (_number(value, ".6g") or "-" for value in (move.base, move.new))
        yield f"  {what}  {old} -> {new}  {words[move.stands_out]}".rstrip()
    if len(moves) > MAX_ROWS:
        yield f"  and {len(moves) - MAX_ROWS:,} more (use --format json)"


def _findings(findings: Sequence[Finding], style: Style) -> Iterator[str]:
    yield "Beyond the limits:"
    for found in findings[:MAX_ROWS]:
        label = style.paint(found.severity, found.severity)
        tensor = escape_name(found.location.tensor or "")
        yield f"  {label} {found.rule} {tensor}: {escape_text(found.message)}"
    if len(findings) > MAX_ROWS:
        yield f"  and {len(findings) - MAX_ROWS:,} more (use --format json)"
