"""Untrusted strings made harmless for terminals, logs and anything their lines are pasted into.

Tensor names, file names and whatever a message quotes come from files that nobody vouched for. A
control character moves a cursor, a bidi override reorders a line, ``::error`` and ``##[`` are
commands to the services that read build logs, ``<script`` and ``|`` mean something to HTML and
Markdown. All of them become visible escapes such as ``\\x1b``.
"""

from __future__ import annotations

import re

NAME_LIMIT = 160
"""Characters of a name that are shown; a longer one is cut in the middle and says so."""
MESSAGE_LIMIT = 2000
"""Characters of a message that are shown."""

# a tag's beginning, a table's border, and what log services read as a command anywhere in a line
_MARKUP = re.compile(r"<(?=[A-Za-z/!?])|\||#(?=#)")
# log services trim a line before they look for a command
_COMMAND_LINE = re.compile(r"^([ \t]*):(?=:)", re.MULTILINE)


def escape_name(name: str) -> str:
    """Return a name as one printable piece: cut in the middle, backslashes doubled.

    An empty name is shown as two quotes, so that there is something to see.
    """
    if not name:
        return "''"
    return _escape(_cut(name, NAME_LIMIT).replace("\\", "\\\\"))


def escape_text(text: str) -> str:
    """Return a message on one line; backslashes stay, since messages quote with ``repr``."""
    return _escape(_cut(text, MESSAGE_LIMIT))


def guard_lines(text: str) -> str:
    """Return ``text`` with no line that a log service would take for a command."""
    return _COMMAND_LINE.sub(r"\1\\x3a", text)


def _escape(text: str) -> str:
    marked = _MARKUP.sub(lambda match: _visible(match.group()), text)
    printable = "".join(c if c.isprintable() else _visible(c) for c in marked)
    return guard_lines(printable)


def _visible(character: str) -> str:
    point = ord(character)
    if point <= 0xFF:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = limit // 4
    head = limit - tail
    return f"{text[:head]}[... {len(text) - limit} more characters ...]{text[-tail:]}"
