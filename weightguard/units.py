"""Numbers as people read them, in messages and in what commands print."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return "1 finding" or "2 findings", "1 entry" or "2 entries"."""
    if number == 1:
        return f"1 {noun}"
    ies = noun.endswith("y") and noun[-2] not in "aeou"
    plural = f"{noun[:-1]}ies" if ies else f"{noun}s"
    return f"{number:,} {plural}"


def byte_size(nbytes: float) -> str:
    """Return a size in decimal units, such as "98.4 MB"."""
    size = float(nbytes)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return counted(round(size), "byte") if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} PB"


def listed(words: list[str]) -> str:
    """Return words joined as in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
