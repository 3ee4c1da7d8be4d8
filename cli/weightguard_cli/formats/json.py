"""JSON for programs: the report as docs/spec/report-v1.md describes it, or a diff or repair."""

from __future__ import annotations

from weightguard.finding import Report
from weightguard_cli.json_output import json_text
from weightguard_cli.presentation import Presentation


def render(report: Report, presentation: Presentation) -> str:
    """Return the report, or the command's own document; how it is presented is no part of it."""
    account = presentation.account
    return json_text(report if account is None else account.document)
