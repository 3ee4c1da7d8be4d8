"""Where a finding is, in words."""

from __future__ import annotations

from collections.abc import Iterator

from weightguard.finding import Finding, Location
from weightguard_cli.escape import escape_name


def place(found: Finding) -> str:
    """Return a finding's place on one printable line; empty where it has none."""
    row = "residue row" if found.rule == "WG401" else "row"
    return " ".join(_words(found.location, row))


def subject(location: Location) -> str:
    """Return the tensor or element a location names, as one printable piece; empty for none."""
    if location.tensor is None:
        return ""
    element = location.element
    return escape_name(location.tensor) + (
        "" if element is None else "[" + ",".join(map(str, element)) + "]"
    )


def _words(location: Location, row: str) -> Iterator[str]:
    if location.tensor is not None:
        yield subject(location)
        parts = ((row, location.row), ("block", location.block))
        inner = ", ".join(f"{word} {number}" for word, number in parts if number is not None)
        if inner:
            yield f"({inner})"
    if location.file is not None:
        inside = location.tensor is not None
        yield f"in {escape_name(location.file)}" if inside else escape_name(location.file)
    if location.offset is not None:
        yield f"at byte {location.offset}"
