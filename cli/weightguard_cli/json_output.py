"""JSON for programs: pure ASCII, exact, sorted keys, the schema's name inside."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

# "<" opens a tag and "|" a table's cell where JSON is pasted into a page, "##[" a command where
# it is logged
_GUARDED = (
    ("<", "\\u003c"),
    (">", "\\u003e"),
    ("&", "\\u0026"),
    ("|", "\\u007c"),
    ("##", "\\u0023\\u0023"),
)


def json_text(document: object) -> str:
    """Return ``document`` (JSON values or msgspec structs) as JSON text ending with a newline.

    Numbers that JSON has no form for (NaN, infinities) become strings. The escapes mean the
    same strings to every parser; a lone surrogate is written as its ``\\uXXXX``.
    """
    values = _finite(msgspec.to_builtins(document))
    text = json.dumps(values, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False)
    for plain, escaped in _GUARDED:
        text = text.replace(plain, escaped)
    return text.replace("\x7f", "\\u007f") + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
