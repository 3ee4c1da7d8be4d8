"""A report as text for people: verdict, findings, what stands out, what was not checked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from weightguard.catalogue import RULES
from weightguard.finding import Finding, Report
from weightguard_cli.account import Line, Table
from weightguard_cli.beside_text import unchecked_lines
from weightguard_cli.escape import escape_name, escape_text, guard_lines
from weightguard_cli.evidence import evidence_lines
from weightguard_cli.place import place
from weightguard_cli.presentation import Presentation
from weightguard_cli.salience_text import salience_lines
from weightguard_cli.style import Style
from weightguard_cli.table import table_lines
from weightguard_cli.verdict import Scope, coverage_words

MAX_SHOWN = 20
"""Findings of one rule and severity that are written out; JSON has them all."""


def render(report: Report, presentation: Presentation) -> str:
    """Return the report for people at a terminal or in a log, ending with a newline."""
    style, account = presentation.style, presentation.account
    lines = [*_head(report, presentation)]
    for table in account.tables if account else ():
        lines += ["", *_table(table, style)] if table.lines else []
    for (severity, rule), group in groupby(report.findings, lambda f: (f.severity, f.rule)):
        lines += ["", *_group(severity, rule, list(group), style)]
    if report.salience is not None:
        standing_out = [*salience_lines(report.salience)]
        lines += ["", *standing_out] if standing_out else []
    lines += ["", *_tail(report, presentation.scope, style)]
    return guard_lines("\n".join(lines)) + "\n"


def report_text(report: Report, scope: Scope, style: Style) -> str:
    """Return a report alone as text that ends with a newline."""
    return render(report, Presentation("", scope, style=style))


def verdict_line(report: Report, presentation: Presentation, style: Style) -> str:
    """Return the verdict alone."""
    said = presentation.verdict(report)
    return style.paint(str(said), said.kind, bold=True)


def _head(report: Report, presentation: Presentation) -> Iterator[str]:
    scope, account = presentation.scope, presentation.account
    yield verdict_line(report, presentation, presentation.style)
    if account is None or not account.facts:
        known = "" if report.format == "unknown" else f" ({escape_name(report.format)})"
        yield f"  {escape_name(report.checkpoint)}{known}"
    if report.policy is not None:
        yield f"  under the policy {escape_name(report.policy)}"
    if scope.weights is not None:
        yield f"  beside the manifest of weights {escape_name(scope.weights)}"
    if account is not None:
        width = max((len(label) for label, _ in account.facts), default=0)
        yield from (f"  {label:<{width}}  {value}" for label, value in account.facts)
        for sentence in account.sentences:
            yield from presentation.style.wrap(sentence, "  ")


def _table(table: Table, style: Style) -> Iterator[str]:
    """Yield a table whose first column has the colour of its line."""
    headings = tuple(title for title, _ in table.columns)
    head, *body = table_lines([headings, *(line.cells for line in table.lines)])
    yield f"{table.title}:"
    yield style.strong(head)
    for text, line in zip(body, table.lines, strict=True):
        yield _coloured(text, line, style) if line.kind else text
    if table.more:
        yield table.more


def _coloured(text: str, line: Line, style: Style) -> str:
    before, first, rest = text.partition(line.cells[0])
    return before + style.paint(first, line.kind) + rest


def _group(severity: str, rule: str, findings: list[Finding], style: Style) -> Iterator[str]:
    label = style.paint(escape_text(severity), severity if severity in _KINDS else "bad")
    known = RULES.get(rule)
    name = f" {known.name}" if known else ""
    number = f" ({len(findings)})" if len(findings) > 1 else ""
    yield f"{label} {style.strong(escape_text(rule) + name)}{number}"
    shown = findings[:MAX_SHOWN]
    for remedy, sharing in groupby(shown, lambda f: f.remedy):
        for found in sharing:
            yield from _finding(found, style)
        yield from style.wrap(escape_text(remedy), "        ", "    Do: ")
    if len(findings) > MAX_SHOWN:
        yield f"  and {len(findings) - MAX_SHOWN:,} more (use --format json)"


_KINDS = frozenset({"critical", "error", "warning", "info"})


def _finding(found: Finding, style: Style) -> Iterator[str]:
    where = place(found)
    if where:
        yield f"  {where}"
    yield from style.wrap(escape_text(found.message), "    ")
    for line in evidence_lines(found.evidence):
        yield from style.wrap(line, "        ", "      ")


def _tail(report: Report, scope: Scope, style: Style) -> Iterator[str]:
    if report.coverage.tensors_total or report.complete:
        yield f"Checked {coverage_words(report.coverage)}."
    unchecked = [*unchecked_lines(report, scope)]
    if unchecked:
        yield "Not checked:"
    for subject in unchecked:
        yield from style.wrap(subject, "    ", "  - ")
