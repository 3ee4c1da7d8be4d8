"""Exit statuses: the same for every command, and part of the public contract."""

from __future__ import annotations

CLEAN = 0
FINDINGS = 1
"""Findings at or above ``--fail-on``."""
INCOMPLETE = 2
"""The job could not be done: usage, unreadable or malformed input, a bug of ours."""
INTERRUPTED = 130
