"""``weightguard rules``: what weightguard looks for, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from weightguard_cli.options import format_option

if TYPE_CHECKING:
    from weightguard.catalogue import Rule
    from weightguard_cli.style import Style


@click.command()
@click.argument("code", required=False)
@format_option
def rules(code: str | None, output_format: str) -> int:
    """List the rules, explain those that begin with CODE, or print the page of one."""
    from weightguard.pages import page
    from weightguard.rules.selection import Selection
    from weightguard_cli.json_output import json_text
    from weightguard_cli.output import deliver
    from weightguard_cli.status import CLEAN
    from weightguard_cli.style import Style

    codes = Selection.of([code.upper()] if code else ()).codes
    chosen = [rule for rule in _catalogue() if rule.code in codes]
    if output_format == "json":
        document = {"schema": "weightguard-rules-v1", "rules": [_record(rule) for rule in chosen]}
        deliver(json_text(document), None)
        return CLEAN
    if code and len(chosen) == 1:
        deliver(page(chosen[0].code), None)
        return CLEAN
    style = Style.of(sys.stdout)
    lines = _explained(chosen, style) if code else _listed(chosen, style)
    deliver("\n".join(lines) + "\n", None)
    return CLEAN


def _catalogue() -> Iterator[Rule]:
    from weightguard.catalogue import RULES

    return iter(RULES.values())


def _record(rule: Rule) -> dict[str, str]:
    return {
        "code": rule.code,
        "name": rule.name,
        "severity": rule.severity.label,
        "summary": rule.summary,
        "why": rule.why,
        "remedy": rule.remedy,
    }


def _listed(chosen: list[Rule], style: Style) -> Iterator[str]:
    name_width = max(len(rule.name) for rule in chosen)
    for rule in chosen:
        label = rule.severity.label
        severity = style.paint(f"{label:<8}", label)
        yield f"{rule.code}  {severity}  {rule.name:<{name_width}}  {rule.summary}"


def _explained(chosen: list[Rule], style: Style) -> Iterator[str]:
    for position, rule in enumerate(chosen):
        if position:
            yield ""
        label = rule.severity.label
        yield f"{style.strong(f'{rule.code} {rule.name}')} ({style.paint(label, label)})"
        yield from style.wrap(rule.summary, "  ")
        yield from style.wrap(rule.why, "       ", "  Why: ")
        yield from style.wrap(rule.remedy, "      ", "  Do: ")
