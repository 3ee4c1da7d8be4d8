"""What a command tells beside findings, in words and tables that every format can show.

All words are printable already: whatever comes from a file went through ``escape``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from weightguard_cli.formats.charts import Plot
from weightguard_cli.formats.tensor_map import Row
from weightguard_cli.table import table_lines
from weightguard_cli.verdict import Verdict

ColumnKind: TypeAlias = Literal["words", "number", "name"]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table; ``kind`` names its colour, such as a severity, or is empty."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Lines under headings; ``left_out`` further ones are in the JSON output only."""

    title: str
    columns: tuple[tuple[str, ColumnKind], ...]
    lines: tuple[Line, ...]
    left_out: int = 0

    @property
    def more(self) -> str:
        """What is said of the lines that are left out; empty where none is."""
        return f"and {self.left_out:,} more (--format json has them all)" if self.left_out else ""


@dataclass(frozen=True, slots=True)
class Picture:
    """For pages: every tensor a cell in the colour of what became of it, and a plot of measures."""

    lead: str
    legend: tuple[str, ...]
    rows: tuple[Row, ...]
    plot: Plot | None
    plot_title: str
    plot_lead: str


@dataclass(frozen=True, slots=True)
class Case:
    """One tensor as a test case: its name, the file it lies in, and what is to be said of it."""

    name: str
    file: str
    words: str


@dataclass(frozen=True, slots=True)
class Account:
    """What a command has to tell: its verdict, facts (label and value), sentences and tables.

    ``counts`` are numbers with the kind (a colour) and the label of each. ``cases`` stand for the
    tensors where the report does not list them, ``document`` for the report in JSON.
    """

    verdict: Verdict
    document: object
    facts: tuple[tuple[str, str], ...] = ()
    sentences: tuple[str, ...] = ()
    counts: tuple[tuple[str, str, int], ...] = ()
    tables: tuple[Table, ...] = ()
    cases: tuple[Case, ...] = ()
    picture: Picture | None = None


def table_of(
    title: str, columns: tuple[tuple[str, ColumnKind], ...], lines: Sequence[Line], limit: int
) -> Table:
    """Return a table of the first ``limit`` lines, without the columns in which none has a word."""
    kept = lines[:limit]
    used = [n for n in range(len(columns)) if any(line.cells[n] for line in kept)]
    return Table(
        title,
        tuple(columns[n] for n in used),
        tuple(Line(tuple(line.cells[n] for n in used), line.kind) for line in kept),
        len(lines) - len(kept),
    )


def plain_lines(account: Account) -> Iterator[str]:
    """Yield facts, sentences and tables as lines of plain text."""
    for label, value in account.facts:
        yield f"{label}: {value}"
    yield from account.sentences
    for table in account.tables:
        if not table.lines:
            continue
        yield f"{table.title}:"
        yield from table_lines([tuple(title for title, _ in table.columns),
                                *(line.cells for line in table.lines)], "  ")  # fmt: skip
        if table.more:
            yield f"  {table.more}"
