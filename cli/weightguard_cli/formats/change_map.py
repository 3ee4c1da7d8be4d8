"""How tensors changed, drawn: a cell each in the colour of its status, and how far it is away."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from weightguard.drift import TensorChange
from weightguard_cli.escape import escape_name
from weightguard_cli.formats.charts import LogAxis, Plot, in_groups
from weightguard_cli.formats.tensor_map import MAX_CELLS, Cell, Row, size_class

ONLY_IN_BASE = "only in the base"


def change_rows(changes: Sequence[TensorChange]) -> tuple[Row, ...]:
    """Return the map, a row a file of the new side; unchanged tensors go first if room is short."""
    room = max(0, MAX_CELLS - sum(change.status != "unchanged" for change in changes))
    files: dict[str, list[TensorChange]] = defaultdict(list)
    for change in changes:
        file = ONLY_IN_BASE if change.new is None else change.new.file or "all tensors"
        files[file].append(change)
    rows = []
    for file, group in sorted(files.items(), key=lambda entry: entry[0] == ONLY_IN_BASE):
        cells: list[Cell] = []
        for change in group:
            if change.status == "unchanged":
                if not room:
                    continue
                room -= 1
            if len(cells) < MAX_CELLS:
                cells.append(_cell(change))
        rows.append(Row(escape_name(file), tuple(cells), len(group) - len(cells)))
    return tuple(rows)


def _cell(change: TensorChange) -> Cell:
    side = change.new or change.base
    nbytes = side.nbytes if side else 0
    return Cell(change.status, size_class(nbytes), _title(change), None)


def _title(change: TensorChange) -> str:
    known = change.relative_change
    measured = f", relative change {known:.3g}" if known else ""
    return f"{escape_name(change.tensor)}: {change.status}{measured}"


def change_plot(changes: Sequence[TensorChange]) -> Plot | None:
    """Return the relative change of each tensor that has one; None where none has."""
    known = [(c.relative_change, c) for c in changes if c.relative_change]
    shown = [(far, change) for far, change in known if math.isfinite(far)]
    if not shown:
        return None
    least, most = min(far for far, _ in shown), max(far for far, _ in shown)
    axis = LogAxis(least * 0.7, most)
    floor = 10.0 ** math.floor(math.log10(least * 0.7))
    groups = in_groups(shown)
    bars = []
    for number, group in enumerate(groups):
        far, change = max(group, key=lambda entry: entry[0])
        more = f" and {len(group) - 1} more below it" if len(group) > 1 else ""
        words = change.status, _title(change) + more
        bars.append(axis.bar(number, len(groups), (floor, far), words))
    return Plot(tuple(bars), axis.ticks, len(groups[0]))
