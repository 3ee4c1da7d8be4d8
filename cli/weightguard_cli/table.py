"""Tables of text: columns to the right, the last one as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def table_lines(rows: Sequence[tuple[str, ...]], indent: str = "") -> Iterator[str]:
    """Yield a line a row; the first row holds the headings."""
    # names come last: they alone have no bound that a terminal could hold
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        yield indent + "  ".join([*cells, row[-1]])
