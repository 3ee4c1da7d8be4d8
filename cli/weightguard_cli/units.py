"""Numbers as people read them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return "1 finding" or "2 findings"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
