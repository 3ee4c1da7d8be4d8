"""One HTML file that needs nothing else: verdict, findings, map, plots, and what was not checked.

It holds no script, no reference to anything outside of it, and a policy that forbids both. Whatever
comes from a file is escaped twice: made printable, then by the template.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from weightguard import __version__
from weightguard.catalogue import RULES, Severity
from weightguard.finding import Finding, Report
from weightguard.ranges import TensorRange
from weightguard.units import byte_size
from weightguard_cli.account import Table
from weightguard_cli.beside_text import unchecked_lines
from weightguard_cli.escape import escape_name, escape_text
from weightguard_cli.evidence import evidence_lines
from weightguard_cli.formats.charts import channel_bars, range_plot
from weightguard_cli.formats.tensor_map import Worst, map_rows, strips, worst_by_tensor
from weightguard_cli.place import place
from weightguard_cli.presentation import Presentation
from weightguard_cli.verdict import coverage_words

MAX_SHOWN = 25
"""Findings of one rule and severity that are written out."""
MAX_FINDINGS = 500
"""Findings that are written out in all."""
MAX_ROWS = 1_000
"""Tensors in the table; those with findings come first."""
MAX_SUPER_WEIGHTS = 16

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Told:
    """One finding in words."""

    place: str
    message: str
    evidence: tuple[str, ...]
    remedy: str


@dataclass(frozen=True, slots=True)
class Group:
    """The findings of one rule and severity: how many there are, and those that are shown."""

    anchor: str
    code: str
    name: str
    severity: str
    summary: str
    why: str
    count: int
    shown: tuple[Told, ...]


def render(report: Report, presentation: Presentation) -> str:
    """Return the page; its size is bounded whatever the report holds."""
    style = (_HERE / "report.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.jinja")
    page = template.render(**_view(report, presentation), style=style, style_digest=digest)
    return page.rstrip("\n") + "\n"


def _view(report: Report, presentation: Presentation) -> dict[str, Any]:
    account = presentation.account
    counts = Counter(f.severity for f in report.findings)
    worst = worst_by_tensor(report.findings)
    salience = report.salience
    return {
        "verdict": presentation.verdict(report),
        "task": presentation.task,
        "version": __version__,
        "checkpoint": escape_name(report.checkpoint),
        "policy": None if report.policy is None else escape_name(report.policy),
        "format": escape_name(report.format),
        "weights": presentation.scope.weights and escape_name(presentation.scope.weights),
        "coverage": coverage_words(report.coverage),
        "counts": [(s.label, counts[s.label]) for s in reversed(Severity)],
        "statuses": account.counts if account else (),
        "facts": account.facts if account else [("checkpoint", escape_name(report.checkpoint))],
        "sentences": account.sentences if account else (),
        "told": [_wide(table) for table in account.tables if table.lines] if account else [],
        "picture": account and account.picture,
        "groups": [*_groups(report.findings)],
        "rows": map_rows(report, worst, _anchors(report.findings)),
        "strips": [*strips(report, worst)],
        "plot": range_plot(report.ranges, worst),
        "channels": channel_bars(salience.outlier_channels) if salience else [],
        "super_weights": [*_super_weights(report)],
        "tensors": [*_tensors(report, worst)],
        "tensors_left_out": max(0, len(report.ranges) - MAX_ROWS),
        "unchecked": [*unchecked_lines(report, presentation.scope)],
    }


def _wide(table: Table) -> Table:
    """Return a table with its names in front: a page scrolls sideways, and names must stay seen."""
    order = sorted(range(len(table.columns)), key=lambda n: table.columns[n][1] != "name")
    return replace(
        table,
        columns=tuple(table.columns[n] for n in order),
        lines=tuple(
            replace(line, cells=tuple(line.cells[n] for n in order)) for line in table.lines
        ),
    )


def _anchor(found: Finding) -> str:
    known = found.rule if found.rule in RULES else "other"
    return f"{known}-{found.severity}"


def _anchors(findings: tuple[Finding, ...]) -> dict[str, str]:
    anchors: dict[str, str] = {}
    for found in findings:
        if found.location.tensor is not None:
            anchors.setdefault(found.location.tensor, _anchor(found))
    return anchors


def _groups(findings: tuple[Finding, ...]) -> Iterator[Group]:
    room = MAX_FINDINGS
    for _, same in groupby(findings, lambda f: (f.severity, f.rule)):
        group = [*same]
        first = group[0]
        rule = RULES.get(first.rule)
        shown = group[: max(1, min(MAX_SHOWN, room))]
        room -= len(shown)
        yield Group(
            _anchor(first),
            escape_text(first.rule),
            rule.name if rule else "",
            first.severity,
            rule.summary if rule else "",
            rule.why if rule else "",
            len(group),
            tuple(map(_told, shown)),
        )


def _told(found: Finding) -> Told:
    evidence = tuple(filter(None, evidence_lines(found.evidence)))
    return Told(place(found), escape_text(found.message), evidence, escape_text(found.remedy))


def _super_weights(report: Report) -> Iterator[tuple[str, str, str]]:
    weights = report.salience.super_weights if report.salience else ()
    for weight in weights[:MAX_SUPER_WEIGHTS]:
        index = ",".join(map(str, weight.index))
        yield f"{escape_name(weight.tensor)}[{index}]", f"{weight.value:.5g}", weight.status


def _tensors(report: Report, worst: Worst) -> Iterator[dict[str, str]]:
    order = sorted(report.ranges, key=lambda t: -worst.get(t.name, -1))
    for tensor in order[:MAX_ROWS]:
        severity = worst.get(tensor.name)
        yield {
            "kind": "sound" if severity is None else severity.label,
            "name": escape_name(tensor.name),
            "dtype": tensor.dtype,
            "shape": " x ".join(map(str, tensor.shape[:8])) or "scalar",
            "size": byte_size(tensor.nbytes),
            **_numbers(tensor),
        }


def _numbers(tensor: TensorRange) -> dict[str, str]:
    names = ("min", "max", "rms", "zero", "odd")
    if tensor.raw:
        return dict.fromkeys(names, "-")
    least, greatest = tensor.min, tensor.max
    odd = tensor.nan + tensor.inf
    return {
        "min": "-" if least is None else f"{least:.4g}",
        "max": "-" if greatest is None else f"{greatest:.4g}",
        "rms": f"{tensor.rms:.4g}",
        "zero": f"{tensor.zero:,}",
        "odd": f"{odd:,}",
    }
