"""Colour and width: only for terminals, and only where the user wants them."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import IO

import click

MIN_WIDTH = 40
MAX_WIDTH = 120

_COLOURS = {
    "critical": "bright_red",
    "error": "red",
    "warning": "yellow",
    "info": "cyan",
    "good": "green",
    "bad": "bright_red",
    "broken": "bright_red",
    "replaced": "red",
    "reshaped": "red",
    "removed": "red",
    "added": "yellow",
}


@dataclass(frozen=True, slots=True)
class Style:
    """How text is dressed: with colours or not, wrapped at ``width`` columns or not."""

    coloured: bool = False
    width: int | None = None

    @classmethod
    def of(cls, stream: IO[str] | None) -> Style:
        """Return the style for a stream: plain unless it is a terminal."""
        if not is_terminal(stream):
            return cls()
        columns = shutil.get_terminal_size().columns
        return cls(not os.environ.get("NO_COLOR"), max(MIN_WIDTH, min(columns, MAX_WIDTH)))

    def paint(self, text: str, kind: str, *, bold: bool = False) -> str:
        """Return ``text`` in the colour of a severity, a verdict or a tensor's change."""
        return click.style(text, fg=_COLOURS.get(kind), bold=bold) if self.coloured else text

    def strong(self, text: str) -> str:
        """Return ``text`` in bold."""
        return click.style(text, bold=True) if self.coloured else text

    def wrap(self, text: str, indent: str, first: str | None = None) -> list[str]:
        """Return ``text`` as indented lines; words are never broken, so that they can be copied."""
        first = indent if first is None else first
        if self.width is None:
            return [first + text]
        return textwrap.wrap(
            text,
            self.width,
            initial_indent=first,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )


def is_terminal(stream: IO[str] | None) -> bool:
    """Return whether a person reads the stream on a terminal that understands control codes."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def stderr_is_terminal() -> bool:
    """Return whether progress and timing have a reader."""
    return is_terminal(sys.stderr)
