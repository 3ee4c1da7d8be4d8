"""What a diff has to tell: counts, what became of each tensor, what moved, a map and a plot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from weightguard.catalogue import Severity
from weightguard.diff import Diff, Move
from weightguard.drift import OddValues, Side, Status, TensorChange
from weightguard.units import counted, listed
from weightguard_cli.account import Account, Case, ColumnKind, Line, Picture, Table, table_of
from weightguard_cli.escape import escape_name
from weightguard_cli.formats.change_map import change_plot, change_rows
from weightguard_cli.verdict import Verdict

MAX_LINES = 200
"""Tensors that are listed, and things that moved; JSON has them all."""

ORDER: tuple[Status, ...] = (
    "broken",
    "replaced",
    "reshaped",
    "removed",
    "added",
    "fine-tuned",
    "changed",
    "cast",
    "unchanged",
)
"""What matters most comes first."""

_COLUMNS: tuple[tuple[str, ColumnKind], ...] = (
    ("status", "words"),
    ("rel. change", "number"),
    ("cosine", "number"),
    ("changed", "number"),
    ("rms", "number"),
    ("extrema", "number"),
    ("NaN and Inf", "words"),
    ("tensor", "name"),
)
_CHANNELS: tuple[tuple[str, ColumnKind], ...] = (
    ("stand out now", "number"),
    ("no longer", "number"),
    ("changed", "number"),
    ("greatest move", "words"),
    ("channels", "name"),
)


def diff_account(found: Diff, fail_on: Severity, *, show_all: bool) -> Account:
    """Return the account of a diff; ``show_all`` lists tensors that did not change, too."""
    counts = Counter(change.status for change in found.tensors)
    return Account(
        _verdict(found, counts, fail_on),
        found,
        (("base", escape_name(found.base)), ("new", escape_name(found.new))),
        tuple(_sentences(found)),
        tuple((status, status, counts[status]) for status in ORDER if counts[status]),
        tuple(_tables(found, show_all)),
        tuple(_case(change) for change in found.tensors),
        _picture(found, counts),
    )


def _verdict(found: Diff, counts: Counter[Status], fail_on: Severity) -> Verdict:
    words = [f"{counts[status]:,} {status}" for status in ORDER if counts[status]]
    sentence = f"{counted(len(found.tensors), 'tensor')}, {listed(words) or 'none'}"
    failing = [f for f in found.findings if f.level >= fail_on]
    if failing:
        beyond = counted(len(failing), "finding")
        return Verdict("TOO FAR", f"{beyond} beyond the limits; {sentence}", "bad")
    if len(found.tensors) == counts["unchanged"]:
        return Verdict("SAME", sentence, "good")
    return Verdict("DIFFERENT", sentence, "warning" if counts["broken"] else "info")


def _sentences(found: Diff) -> Iterator[str]:
    if found.measured == "manifests":
        yield "by digests and statistics of manifests: how far a change goes is not known"
    matched = sum(c.status not in ("added", "removed") for c in found.tensors)
    if found.tensors and not matched:
        yield (
            "no tensor of one side has a name of the other: names of different formats, such as "
            "those of a GGUF file and of its Hugging Face model, are not matched"
        )


def _tables(found: Diff, show_all: bool) -> Iterator[Table]:
    shown = [c for c in found.tensors if show_all or c.status != "unchanged"]
    shown.sort(key=lambda c: (ORDER.index(c.status), -(c.relative_change or 0), c.tensor))
    lines = [Line(_cells(change), change.status) for change in shown]
    yield table_of("Tensors", _COLUMNS, lines, MAX_LINES)
    yield _super_weights([move for move in found.moved if move.kind == "super-weight"])
    yield _channels([move for move in found.moved if move.kind != "super-weight"], found)


def _cells(change: TensorChange) -> tuple[str, ...]:
    share = "" if change.changed is None else f"{change.changed:,} of {change.scalars:,}"
    return (
        change.status,
        _number(change.relative_change, ".3g"),
        _number(change.cosine, ".6f"),
        share,
        _both(change, lambda side: _number(side.rms, ".4g")),
        _both(change, _range),
        _odd_words(change),
        f"{escape_name(change.tensor)}{_kind_of(change)}",
    )


def _odd_words(change: TensorChange) -> str:
    sides = (("appeared", change.appeared), ("gone", change.gone))
    words = [f"{_counts(odd)} {what}, first at [{_index(odd.first)}]"
             for what, odd in sides if odd is not None]  # fmt: skip
    if change.base is not None and change.new is not None:
        # of manifests, which tell how many there are and not where
        pairs = ("NaN", change.base.nan, change.new.nan), ("Inf", change.base.inf, change.new.inf)
        words += [f"{word} {old:,} -> {new:,}" for word, old, new in pairs
                  if old is not None and new is not None and old != new]  # fmt: skip
    return "; ".join(words)


def _counts(odd: OddValues) -> str:
    parts = [f"{odd.nan:,} NaN"] if odd.nan else []
    return listed(parts + ([f"{odd.inf:,} Inf"] if odd.inf else []))


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
    return sides[0] if sides[0] == sides[1] else " -> ".join(side or "none" for side in sides)


def _range(side: Side) -> str:
    if side.min is None or side.max is None:
        return ""
    return f"{side.min:.4g}..{side.max:.4g}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _index(index: Iterable[int]) -> str:
    return ",".join(map(str, index))


_NOW = {"base": "no longer stands out", "new": "stands out now", "both": "changed"}


def _super_weights(moves: Sequence[Move]) -> Table:
    lines = [
        Line((
            _NOW[move.stands_out],
            _number(move.base, ".6g") or "-",
            _number(move.new, ".6g") or "-",
            f"{escape_name(move.tensor)}[{_index(move.index)}]",
        ))
        for move in moves
    ]  # fmt: skip
    columns: tuple[tuple[str, ColumnKind], ...] = (
        ("", "words"), ("base", "number"), ("new", "number"), ("weight", "name"),
    )  # fmt: skip
    return table_of("Super weights that moved", columns, lines, MAX_LINES)


def _channels(moves: Sequence[Move], found: Diff) -> Table:
    """Return a line for the rows, and one for the columns, of each tensor."""
    whole = {c.tensor: c.status for c in found.tensors if c.status in ("added", "removed")}
    groups: dict[tuple[str, str], list[Move]] = defaultdict(list)
    for move in moves:
        groups[move.tensor, move.kind].append(move)
    lines = []
    for (tensor, kind), group in groups.items():
        sides = Counter(move.stands_out for move in group)
        status = whole.get(tensor)
        greatest = f"{status} with it" if status else _greatest(group)
        numbers = (f"{sides[side]:,}" if sides[side] else "" for side in ("new", "base", "both"))
        lines.append(Line((*numbers, greatest, f"{kind}s of {escape_name(tensor)}")))
    return table_of("Outlier channels that moved", _CHANNELS, lines, MAX_LINES)


def _greatest(group: Sequence[Move]) -> str:
    known = [(abs(m.new - m.base), m) for m in group if m.base is not None and m.new is not None]
    if not known:
        return ""
    _, move = max(known, key=lambda pair: pair[0])
    return f"{move.kind} {_index(move.index)}: {move.base:.4g} -> {move.new:.4g}"


def _case(change: TensorChange) -> Case:
    titles = [title for title, _ in _COLUMNS]
    words = [f"{title}: {cell}" for title, cell in zip(titles, _cells(change), strict=True) if cell]
    side = change.new or change.base
    file = (side.file if side else None) or "checkpoint"
    return Case(change.tensor, file, "\n".join(words[:-1]))


def _picture(found: Diff, counts: Counter[Status]) -> Picture:
    return Picture(
        "Every tensor in the order of its name; a wider cell has more bytes.",
        tuple(status for status in ORDER if counts[status]),
        change_rows(found.tensors),
        change_plot(found.tensors),
        "How far",
        "The relative change of each tensor that has one, on a logarithmic axis, in the order of "
        "its name. Two unrelated tensors of one scale are about 1.4 apart.",
    )
