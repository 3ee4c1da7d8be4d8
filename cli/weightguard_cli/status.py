"""Exit statuses: the same for every command, and part of the public contract."""

from __future__ import annotations

from typing import Final

CLEAN: Final = 0
FINDINGS: Final = 1
"""Findings at or above ``--fail-on``."""
INCOMPLETE: Final = 2
"""The job could not be done: usage, unreadable or malformed input, a bug of ours."""
INTERRUPTED: Final = 130
