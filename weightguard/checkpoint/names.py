"""Names chosen by strangers: how messages show them, and which of them are hostile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from weightguard.errors import malformed
from weightguard.finding import Finding, finding
from weightguard.tensor import TensorView

MAX_NAME_CHARS = 4096
"""Real tensor names have tens to hundreds of characters."""

MAX_NAME_FINDINGS = 100
"""Hostile names reported one by one; a header can hold a million."""

_SHOWN_CHARS = 100


def shown(text: str) -> str:
    """Return a stranger's string as a message may hold it: quoted, escaped and cut."""
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")


def hostility(name: str) -> str | None:
    """Return what is wrong with a name, or None for a name that real frameworks write."""
    if len(name) > MAX_NAME_CHARS:
        return f"is {len(name)} characters long"
    # control, format (bidirectional overrides among them), separator and unassigned characters
    if not name.isprintable():
        return "holds control or other unprintable characters"
    return None


def hostile_names(tensors: Iterable[TensorView]) -> Iterator[Finding]:
    """Yield WG115 for each hostile tensor name, at most ``MAX_NAME_FINDINGS``.

    Raises CheckpointError (WG103) for a name that is no Unicode text.
    """
    reported = 0
    for tensor in tensors:
        for name in (tensor.name, *tensor.aliases):
            _require_unicode(name, tensor)
            reason = hostility(name)
            if reason and reported < MAX_NAME_FINDINGS:
                reported += 1
                yield finding(
                    "WG115",
                    f"the tensor name {shown(name)} {reason}",
                    file=tensor.shard,
                    offset=tensor.offset,
                    tensor=name,
                )


def hostile_file_names(files: Iterable[str]) -> Iterator[Finding]:
    """Yield WG115 for each hostile file name, at most ``MAX_NAME_FINDINGS``."""
    hostile = ((name, hostility(name)) for name in files)
    for name, reason in islice(((n, r) for n, r in hostile if r), MAX_NAME_FINDINGS):
        yield finding(
            "WG115",
            f"the file name {shown(name)} {reason}",
            file=name,
            remedy="Rename the file, also in the index or model that names it.",
        )


def require_unicode_file_names(files: Iterable[str]) -> None:
    """Raise CheckpointError (WG115) for a file name that no JSON document can hold."""
    for name in files:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            words = f"the file name {shown(name)} is not Unicode text, so no manifest can hold it"
            raise malformed("WG115", words, file=name, remedy="Rename the file.") from error


def _require_unicode(name: str, tensor: TensorView) -> None:
    if name.isascii():
        return
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise malformed(
            "WG103",
            f"the tensor name {shown(name)} is not Unicode text",
            file=tensor.shard,
            offset=tensor.offset,
        ) from error
