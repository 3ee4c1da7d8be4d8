"""A finding's evidence as lines for people; the JSON output has all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from weightguard.finding import Evidence
from weightguard.units import counted
from weightguard_cli.escape import escape_text

MAX_ELEMENTS = 8
"""Elements that are shown of each finding."""
MAX_VALUES = 8
"""Entries that are shown of a list."""

_TOLD_BY_MESSAGE = frozenset({"count", "element_count", "block_count", "row_count", "record",
                              "axis", "index", "scalars"})  # fmt: skip
_PAIRS = frozenset({"dtype", "shape", "min", "max", "rms", "nan", "inf"})
"""Keys of what is in the base and in the new tensor."""


def evidence_lines(evidence: Evidence) -> Iterator[str]:
    """Yield printable lines: changed or odd elements first, then the other entries."""
    elements = evidence.get("elements")
    shown = {"elements"} if isinstance(elements, list) else set()
    if isinstance(elements, list):
        values = evidence.get("values")
        if isinstance(values, list) and len(values) == len(elements):
            shown.add("values")
        else:
            values = None
        yield from _elements(elements, values, _total(evidence, elements))
    for key, value in evidence.items():
        if key in _PAIRS and isinstance(value, list) and len(value) == 2:
            yield f"{key}: {' -> '.join(map(_value, value))}"
        elif key == "changed" and isinstance(evidence.get("scalars"), int):
            yield f"changed: {value:,} of {counted(evidence['scalars'], 'value')}"
        elif key not in shown | _TOLD_BY_MESSAGE and not _is_place(key, value):
            yield f"{_label(key, evidence)}: {_value(value, _counted(key, evidence))}"


def _label(key: str, evidence: Evidence) -> str:
    # a residue row may cover several rows of a narrow matrix
    if key == "rows" and "row_count" in evidence:
        return "residue rows"
    return escape_text(key.replace("_", " "))


def _counted(key: str, evidence: Evidence) -> int | None:
    """Return how many entries a list would have if it were not cut, where that is told."""
    told = evidence.get({"blocks": "block_count", "rows": "row_count"}.get(key, ""))
    if told is None and key == "rows":
        told = evidence.get("count")
    return told if isinstance(told, int) else None


def _is_place(key: str, value: object) -> bool:
    """Return whether the finding's location says it all: the one block or row, or none."""
    return key in ("blocks", "rows", "tensors") and isinstance(value, list) and len(value) < 2


def _total(evidence: Evidence, elements: list[Any]) -> int:
    told = evidence.get("element_count", evidence.get("count"))
    return told if isinstance(told, int) else len(elements)


def _elements(elements: list[Any], values: list[Any] | None, total: int) -> Iterator[str]:
    if not elements:
        return
    shown = elements[:MAX_ELEMENTS]
    more = f"and {counted(total - len(shown), 'more element')}" if total > len(shown) else ""
    if values is None and not any(isinstance(element, dict) for element in shown):
        yield f"{' '.join(map(_index, shown))} {more}".rstrip()
        return
    for position, element in enumerate(shown):
        if isinstance(element, dict):
            yield _changed(element)
        elif values is not None:
            yield f"{_index(element)} = {_value(values[position])}"
    if more:
        yield more


def _changed(element: dict[str, Any]) -> str:
    bits = f"{element.get('old_bits')} -> {element.get('new_bits')}"
    known = "old" in element and "new" in element
    change = f"{element['old']} -> {element['new']} ({bits})" if known else bits
    flipped = element.get("flipped_bits") or []
    which = f", {'bit' if len(flipped) == 1 else 'bits'} {_value(flipped)} flipped"
    sure = "" if element.get("confirmed", True) else ", consistent with the row's residues only"
    tail = f"{which if flipped else ''}{sure}"
    return _index(element.get("index")) + escape_text(f" {change}{tail}")


def _index(index: object) -> str:
    if isinstance(index, (list, tuple)):
        return "[" + ",".join(str(i) for i in index[:64]) + "]"
    return escape_text(str(index))


def _value(value: object, total: int | None = None) -> str:
    if isinstance(value, (list, tuple)):
        more = max(len(value), total or 0) - min(len(value), MAX_VALUES)
        entries = ", ".join(_value(entry) for entry in value[:MAX_VALUES])
        return f"{entries} and {more:,} more" if more > 0 else entries
    return escape_text(f"{value:.7g}" if isinstance(value, float) else str(value))
