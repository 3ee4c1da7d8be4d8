"""What a report does not cover as text: files that were not read, and what that means."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from weightguard.finding import BesideKind, FilesBeside, Report
from weightguard.units import counted, listed
from weightguard_cli.escape import escape_name
from weightguard_cli.verdict import Scope

MAX_NAMES = 5
"""Files of one kind that are named; JSON has more of them."""

_WORDS: dict[BesideKind, str] = {
    "pickle": "which loaders unpickle; audit by itself what you load",
    "copy": "the weights once more for other loaders; audit by itself what you load",
    "variant": "the same model in another precision; audit by itself what you load",
    "other": "weights of another format; audit by itself what you load",
    "folder": "with weight files of their own; audit by itself what you load",
    "training": "a trainer's state, which is unpickled when training goes on",
}
_ORDER = tuple(_WORDS)


def unchecked_lines(report: Report, scope: Scope) -> Iterator[str]:
    """Yield what was not checked, a line each: nothing that is left out goes unsaid."""
    if not report.complete:
        yield "whatever comes after the point where reading had to stop"
    yield from scope.unchecked
    yield from beside_lines(report.not_read)


def beside_lines(beside: FilesBeside) -> Iterator[str]:
    """Yield a line for each kind of file, those that can do most harm first."""
    files = sorted(beside.files, key=lambda f: (_ORDER.index(f.kind), f.name))
    for kind, group in groupby(files, lambda f: f.kind):
        names = [escape_name(file.name) + ("/" if kind == "folder" else "") for file in group]
        more = len(names) - MAX_NAMES
        rest = [f"{more:,} more"] if more > 0 else []
        yield f"{listed(names[:MAX_NAMES] + rest)}: {_WORDS[kind]}"
    if beside.count > len(beside.files):
        yield f"{counted(beside.count - len(beside.files), 'more file')} beside the checkpoint"
