"""Output formats of a report: a module each, whose ``render`` returns the whole output as text.

A renderer reads nothing but its arguments. Names and messages come from files that nobody vouched
for: each format escapes them for its readers, and bounds what it writes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightguard.finding import Report
    from weightguard_cli.presentation import Presentation

FORMATS = ("text", "json", "sarif", "junit", "markdown", "html")
"""The values of ``--format``; each is a module of this package."""


def render(output_format: str, report: Report, presentation: Presentation) -> str:
    """Return ``report`` in one of ``FORMATS``, ending with a newline."""
    text = import_module(f"{__name__}.{output_format}").render(report, presentation)
    assert isinstance(text, str)
    return text
