"""JSON for programs: the report as docs/spec/report-v1.md describes it."""

from __future__ import annotations

from weightguard.finding import Report
from weightguard_cli.json_output import json_text
from weightguard_cli.presentation import Presentation


def render(report: Report, _presentation: Presentation) -> str:
    """Return the report alone; how it is presented is no part of it."""
    return json_text(report)
