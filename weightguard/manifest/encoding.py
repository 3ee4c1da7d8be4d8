"""Canonical JSON: one document, one sequence of bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec

from weightguard.manifest.document import ManifestDocument


def encode(document: ManifestDocument) -> bytes:
    """Return the canonical JSON: sorted keys, one space of indent, ASCII, shortest floats."""
    return b"".join(encode_pieces(document))


def encode_pieces(document: ManifestDocument) -> Iterator[bytes]:
    """Yield the canonical JSON, a piece a tensor: all of it as objects takes 20 times the room."""
    # a line break within a string would be escaped, so this line is there once
    place = '\n "tensors": {'
    before, after = _canonical(msgspec.structs.replace(document, tensors={})).split(place)
    yield (before + place).encode("ascii")
    for number, name in enumerate(sorted(document.tensors)):
        lines = _canonical({name: document.tensors[name]}).removeprefix("{").removesuffix("\n}")
        yield ("," * (number > 0) + lines.replace("\n", "\n ")).encode("ascii")
    yield ("\n " * bool(document.tensors) + after + "\n").encode("ascii")


def _canonical(value: object) -> str:
    return json.dumps(
        msgspec.to_builtins(value), sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False
    )
