"""JSON from strangers: bounded, UTF-8, no repeated keys, no NaN."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.names import shown
from weightguard.errors import CheckpointError, malformed

MAX_TOKENS = 8_000_000
"""Quotes, brackets, braces and commas: what Python's objects cost memory for, 60 bytes each."""


def read_json_object(file: CheckpointFile, *, limit: int, code: str) -> dict[str, Any]:
    """Return the JSON object that ``file`` holds.

    Raises CheckpointError: WG116 when it is larger than ``limit`` bytes or has more than
    ``MAX_TOKENS`` tokens, rule ``code`` when it is no such object.
    """
    data = file.read(0, file.size, limit=limit)
    if sum(data.count(token) for token in (b'"', b"[", b"{", b",")) > MAX_TOKENS:
        raise malformed(
            "WG116",
            f"{shown(file.name)} has more than {MAX_TOKENS} JSON tokens",
            file=file.name,
            offset=0,
        )
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError as error:
        raise _invalid(file, code, "nested too deep", 0) from error
    except ValueError as error:
        offset = error.pos if isinstance(error, json.JSONDecodeError) else 0
        raise _invalid(file, code, str(error)[:160], offset) from error
    if not isinstance(value, dict):
        raise malformed(code, f"{shown(file.name)} is not a JSON object", file=file.name, offset=0)
    return value


def _invalid(file: CheckpointFile, code: str, words: str, offset: int) -> CheckpointError:
    message = f"{shown(file.name)} is not valid JSON: {words}"
    return malformed(code, message, file=file.name, offset=offset)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError(f"the key {shown(_repeated(pairs))} occurs twice")
    return result


def _repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("no key is repeated")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
