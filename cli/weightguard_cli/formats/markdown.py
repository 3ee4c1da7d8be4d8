"""GitHub-flavoured Markdown for a job summary: the verdict, a table of rules, the findings.

Names stand in code spans, where nothing but a backtick has a meaning; prose from files is escaped
character by character, or stands in a code span too where a service would link it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from weightguard.catalogue import RULES
from weightguard.finding import Finding, Report
from weightguard.units import counted
from weightguard_cli.account import Account, ColumnKind, Table
from weightguard_cli.beside_text import unchecked_lines
from weightguard_cli.escape import escape_name, escape_text, guard_lines
from weightguard_cli.evidence import evidence_lines
from weightguard_cli.place import place
from weightguard_cli.presentation import Presentation
from weightguard_cli.verdict import coverage_words

MARK = "<!-- weightguard report -->"
"""The first line, by which a report is known to be one; readers do not see it."""
MAX_BYTES = 900_000
"""GitHub refuses a summary of more than 1 MiB."""
MAX_SHOWN = 10
"""Findings of one rule and severity that are written out."""
MAX_LINES = 100
"""Lines of a table."""

_SIGNS = {"good": "✅", "info": "🔎", "warning": "⚠️", "bad": "❌", "critical": "❌"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+~|!&$^])")
_LINKED = re.compile(r"[@#]|://|\bwww\.", re.IGNORECASE)
_BACKTICKS = re.compile("`+")


def render(report: Report, presentation: Presentation) -> str:
    """Return the summary, of at most ``MAX_BYTES`` and a few lines."""
    found = presentation.verdict(report)
    known = "" if report.format == "unknown" else f" ({prose(report.format)})"
    under = "" if report.policy is None else f", under the policy {code(report.policy)}"
    lines = [
        MARK,
        f"## {_SIGNS[found.kind]} {found.word}: {prose(found.sentence)}",
        "",
        f"`weightguard {presentation.task}` of {code(report.checkpoint)}{known}{under}",
        "",
        *_account(presentation.account),
    ]
    groups = [
        (rule, [*findings])
        for (_, rule), findings in groupby(report.findings, lambda f: (f.severity, f.rule))
    ]
    lines += [*_table(groups)]
    room = MAX_BYTES
    for rule, findings in groups:
        section = [*_section(rule, findings)]
        room -= sum(len(line.encode("utf-8", "replace")) + 1 for line in section)
        if room < 0:
            lines += ["Further findings are left out; `--format json` has them all.", ""]
            break
        lines += section
    lines += [*_tail(report, presentation)]
    return guard_lines("\n".join(lines)) + "\n"


def code(text: str) -> str:
    """Return a name as a code span."""
    return span(escape_name(text))


def span(shown: str) -> str:
    """Return escaped text as a code span: no markup, link or mention survives in it."""
    longest = max(map(len, _BACKTICKS.findall(shown)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest or shown.startswith(" ") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def prose(text: str) -> str:
    """Return a message as Markdown that shows it literally."""
    shown = escape_text(text)
    return span(shown) if _LINKED.search(shown) else _SPECIAL.sub(r"\\\1", shown)


def _table(groups: list[tuple[str, list[Finding]]]) -> Iterator[str]:
    if not groups:
        return
    yield "| severity | rule | findings | |"
    yield "|---|---|---:|---|"
    for rule, findings in groups:
        known = RULES.get(rule)
        name = f" {known.name}" if known else ""
        summary = prose(known.summary) if known else ""
        yield f"| {findings[0].severity} | {prose(rule)}{name} | {len(findings):,} | {summary} |"
    yield ""


def _account(account: Account | None) -> Iterator[str]:
    if account is None:
        return
    for label, value in account.facts:
        yield f"- {label}: {span(value)}"
    for sentence in account.sentences:
        yield f"- {prose(sentence)}"
    yield ""
    for table in account.tables:
        yield from _account_table(table)


def _account_table(table: Table) -> Iterator[str]:
    if not table.lines:
        return
    yield f"### {prose(table.title)}"
    yield ""
    yield "".join(f"| {title} " for title, _ in table.columns) + "|"
    yield "".join("|---:" if kind == "number" else "|---" for _, kind in table.columns) + "|"
    for line in table.lines[:MAX_LINES]:
        cells = zip(line.cells, table.columns, strict=True)
        yield "".join(f"| {_cell(cell, kind)} " for cell, (_, kind) in cells) + "|"
    yield ""
    more = table.left_out + max(0, len(table.lines) - MAX_LINES)
    if more:
        yield f"and {more:,} more (`--format json` has them all)"
        yield ""


def _cell(cell: str, kind: ColumnKind) -> str:
    return span(cell) if kind == "name" and cell else prose(cell)


def _section(rule: str, findings: list[Finding]) -> Iterator[str]:
    known = RULES.get(rule)
    name = f" {known.name}" if known else ""
    severity = findings[0].severity
    opened = " open" if severity in ("critical", "error") else ""
    number = counted(len(findings), "finding")
    yield f"<details{opened}><summary>{severity} <b>{prose(rule)}</b>{name}, {number}</summary>"
    yield ""
    for remedy, sharing in groupby(findings[:MAX_SHOWN], lambda f: f.remedy):
        for found in sharing:
            where = place(found)
            at = f"{span(where)}: " if where else ""
            yield f"- {at}{prose(found.message)}"
            for line in filter(None, evidence_lines(found.evidence)):
                yield f"  - {span(line)}"
        yield ""
        yield f"  **Do:** {prose(remedy)}"
        yield ""
    if len(findings) > MAX_SHOWN:
        yield f"and {len(findings) - MAX_SHOWN:,} more (`--format json` has them all)"
        yield ""
    yield "</details>"
    yield ""


def _tail(report: Report, presentation: Presentation) -> Iterator[str]:
    counts = Counter(found.severity for found in report.findings)
    if report.coverage.tensors_total or report.complete or counts:
        yield f"Checked {prose(coverage_words(report.coverage))}."
        yield ""
    unchecked = [*unchecked_lines(report, presentation.scope)]
    if unchecked:
        yield "Not checked:"
        yield ""
    for line in unchecked:
        yield f"- {prose(line)}"
