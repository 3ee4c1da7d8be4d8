"""SARIF 2.1.0 for code scanning: a run with its rules, results and what was not checked.

Results are bounded as GitHub bounds what it takes in; the most severe come first. Element and
tensor are logical locations, the place in the file a byte region.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from weightguard import __version__
from weightguard.catalogue import RULES, Rule, Severity
from weightguard.finding import Finding, Location, Report
from weightguard.pages import page
from weightguard_cli.account import plain_lines
from weightguard_cli.beside_text import unchecked_lines
from weightguard_cli.escape import escape_text
from weightguard_cli.evidence import evidence_lines
from weightguard_cli.json_output import json_text
from weightguard_cli.place import subject
from weightguard_cli.presentation import Presentation

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
MAX_RESULTS = 25_000
"""Results of a run beyond which GitHub refuses the file."""
MAX_EVIDENCE_LINES = 10
MAX_NOTES = 100
"""Lines of what a command tells beside findings."""
CHECKPOINT = "CHECKPOINT"
"""The base of addresses that are relative to a checkpoint outside of the working folder."""

_LEVELS = {"info": "note", "warning": "warning", "error": "error", "critical": "error"}
# the bands of code scanning: low from 0.1, medium from 4, high from 7, critical from 9
_SCORES = {"info": "1.0", "warning": "5.0", "error": "8.0", "critical": "9.5"}
# what readers of a message take for a link or a placeholder
_MEANING = re.compile(r"(?<=\])\(|\{(?=\d+\})")

Json = dict[str, Any]


def render(report: Report, presentation: Presentation) -> str:
    """Return one SARIF log with one run."""
    shown = report.findings[:MAX_RESULTS]
    codes = sorted({found.rule for found in shown})
    run = {
        "automationDetails": {"id": f"weightguard/{presentation.task}/"},
        "tool": {
            "driver": {
                "name": "weightguard",
                "semanticVersion": __version__,
                "rules": [_rule(code) for code in codes],
            }
        },
        "originalUriBaseIds": {
            CHECKPOINT: {"description": {"text": "The folder that holds the checkpoint."}}
        },
        "invocations": [_invocation(report, presentation, len(report.findings) - len(shown))],
        "results": _results(shown, codes, report, presentation),
        "columnKind": "unicodeCodePoints",
        "properties": {
            "verdict": str(presentation.verdict(report)),
            "format": report.format,
            "coverage": report.coverage,
        },
    }
    return json_text({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]})


def _rule(code: str) -> Json:
    rule = RULES.get(code)
    return {"id": code} if rule is None else _described(rule)


def _described(rule: Rule) -> Json:
    return {
        "id": rule.code,
        "name": rule.name.title().replace("-", ""),
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": f"{rule.summary} {rule.why}"},
        "help": {"text": f"{rule.why} {rule.remedy}", "markdown": page(rule.code)},
        "defaultConfiguration": {"level": _LEVELS[rule.severity.label]},
        "properties": {
            "security-severity": _SCORES[rule.severity.label],
            "problem.severity": _problem(rule.severity),
            "precision": "very-high" if rule.code.startswith(("WG1", "WG4", "WG5")) else "high",
            "tags": ["security", "integrity", "model-weights"],
        },
    }


def _problem(severity: Severity) -> str:
    if severity >= Severity.ERROR:
        return "error"
    return "warning" if severity is Severity.WARNING else "recommendation"


def _results(
    findings: Sequence[Finding], codes: list[str], report: Report, presentation: Presentation
) -> list[Json]:
    numbers = {code: number for number, code in enumerate(codes)}
    widths = {r.name: r.nbytes // max(math.prod(r.shape), 1) for r in report.ranges}
    seen: Counter[str] = Counter()
    results = []
    for found in findings:
        identity = _identity(found)
        seen[identity] += 1
        print_ = hashlib.sha256(f"{identity}\0{seen[identity]}".encode("utf-8", "replace"))
        width = widths.get(found.location.tensor or "", 0) or 1
        results.append(
            {
                "ruleId": found.rule,
                "ruleIndex": numbers[found.rule],
                "level": _LEVELS[found.severity],
                "message": {"text": _message(found)},
                "locations": [_location(found.location, width, report, presentation)],
                "partialFingerprints": {
                    "primaryLocationLineHash": f"{print_.hexdigest()[:16]}:1",
                    "weightguardFinding/v1": print_.hexdigest(),
                },
                "properties": {"severity": found.severity},
            }
        )
    return results


def _identity(found: Finding) -> str:
    """Return what stays the same of a finding when the rest of the file or the words change."""
    at = found.location
    inside = (at.block, at.row, at.element) if at.tensor is not None else (at.offset,)
    return repr((found.rule, at.file, at.tensor, *inside))


def _message(found: Finding) -> str:
    about = subject(found.location)
    sentences = [f"{about}: " if about else "", escape_text(found.message).rstrip("."), "."]
    lines = [*evidence_lines(found.evidence)][:MAX_EVIDENCE_LINES]
    text = "\n".join(["".join(sentences), *lines, f"Do: {escape_text(found.remedy)}"])
    return _literal(text)


def _literal(text: str) -> str:
    """Return a message in which nothing is a link or a placeholder."""
    return _MEANING.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def _location(at: Location, width: int, report: Report, presentation: Presentation) -> Json:
    artifact = _address(at.file, report.checkpoint, presentation)
    # a line is what GitHub asks for, the bytes are what is meant
    region = {"startLine": 1}
    if at.offset is not None:
        region |= {"byteOffset": at.offset, "byteLength": width if at.element is not None else 1}
    location: Json = {"physicalLocation": {"artifactLocation": artifact, "region": region}}
    if at.tensor is not None:
        location["logicalLocations"] = [
            {"name": at.tensor, "fullyQualifiedName": subject(at), "kind": "tensor"}
        ]
    return location


def _address(file: str | None, checkpoint: str, presentation: Presentation) -> Json:
    if presentation.folder is None:
        name = file or checkpoint.rstrip("/").rpartition("/")[2] or "checkpoint"
        return {"uri": _uri(name), "uriBaseId": CHECKPOINT}
    path = presentation.folder / file if file else presentation.folder
    return {"uri": _uri(str(path))}


def _uri(path: str) -> str:
    # a first segment with a colon would read as a scheme; a leading slash as a host
    return quote(path.lstrip("/").encode("utf-8", "surrogateescape")) or "checkpoint"


def _invocation(report: Report, presentation: Presentation, left_out: int) -> Json:
    lines = plain_lines(presentation.account) if presentation.account else ()
    told = [re.sub(" {2,}", "  ", line.strip()) for line in lines]
    notes = told[:MAX_NOTES]
    if len(told) > MAX_NOTES:
        notes.append(f"{len(told) - MAX_NOTES:,} more lines are left out; --format json has all.")
    notes += [f"Not checked: {line}" for line in unchecked_lines(report, presentation.scope)]
    if left_out:
        notes.append(f"{left_out:,} less severe findings are left out; --format json has them all.")
    return {
        "executionSuccessful": report.complete,
        "exitCode": presentation.status(report),
        "toolExecutionNotifications": [
            {"level": "note", "message": {"text": _literal(note)}} for note in notes
        ],
    }
