"""What is wrong with a policy, in words that name file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import msgspec

from weightguard.policy.document import PolicyError

Keys: TypeAlias = tuple[str | int, ...]
"""Where a value is: keys, and numbers of the entries of lists."""

_KINDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "object": "a table",
    "str": "text",
}


def hint(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about a word that is none of those known."""
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold()[:100], folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else "."


class Problems:
    """Turns what is wrong with a policy into errors that say where.

    ``prefix`` is the table of the file that the policy stands in.
    """

    def __init__(self, text: str, path: Path, prefix: tuple[str, ...] = ()):
        self._text, self._file, self._prefix = text, repr(str(path)), prefix

    def at(self, keys: Keys, words: str) -> PolicyError:
        """Return the error for the value at ``keys``."""
        line = line_of(self._text, (*self._prefix, *keys))
        where = f", line {line}" if line else ""
        name = ".".join(key for key in keys if isinstance(key, str)) or "the policy"
        return PolicyError(f"{self._file}{where}: {name} {words}")

    def invalid(self, error: msgspec.ValidationError) -> PolicyError:
        """Return the error for what msgspec says of a value."""
        words, _, place = str(error).partition(" - at `$")
        keys = tuple(
            int(number) if number else name
            for name, number in re.findall(r"([A-Za-z0-9_-]+)|\[([0-9]+)\]", place)
            if name or number
        )
        return self.at(keys, f"is not valid: {_in_words(words)}.")


def _in_words(words: str) -> str:
    """Return msgspec's words with the types as TOML's users know them."""

    def named(found: re.Match[str]) -> str:
        kinds = (kind for kind in found[1].split(" | ") if kind != "null")
        return " or ".join(_KINDS.get(kind, repr(kind)) for kind in kinds)

    plain = re.sub(r"`([^`]*)`", named, words)
    plain = plain.replace("Object missing required field", "it lacks the key")
    return plain[0].lower() + plain[1:]


def line_of(text: str, keys: Keys) -> int | None:
    """Return the first line of TOML that says most of where ``keys`` are, None where none does."""
    table: Keys = ()
    lists: dict[Keys, int] = {}
    line, most = None, 0
    for number, content in enumerate(text.split("\n"), 1):
        start, key, equals = content.strip(), *content.partition("=")[:2]
        if start.startswith("["):
            place = table = _table(start, lists)
        elif equals:
            place = (*table, *_parts(key))
        else:
            continue
        shared = min(len(place), len(keys))
        if shared > most and place[:shared] == keys[:shared]:
            line, most = number, shared
    return line


def _table(header: str, lists: dict[Keys, int]) -> Keys:
    """Return where the table of a header is; ``lists`` counts those of one name so far."""
    path: Keys = ()
    parts = _parts(header.lstrip("[").partition("]")[0])
    for number, part in enumerate(parts, 1):
        path = (*path, part)
        if number == len(parts) and header.startswith("[["):
            lists[path] = lists.get(path, -1) + 1
        if path in lists:
            path = (*path, lists[path])
    return path


def _parts(key: str) -> list[str]:
    return [part.strip().strip("\"'") for part in key.split(".")]
