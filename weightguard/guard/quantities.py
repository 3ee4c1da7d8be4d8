"""Quantities as people write them in settings: "500MB/s", "8MiB", "60s"."""

from __future__ import annotations

import re

from weightguard.errors import WeightguardError

_BYTES = {
    "": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Return a number of bytes; raises WeightguardError for what is none."""
    return round(_parse(text, _BYTES, "a number of bytes such as 8MiB"))


def parse_rate(text: str | int) -> int:
    """Return bytes a second, above 0; raises WeightguardError for what is no such rate."""
    example = "a rate such as 500MB/s"
    if isinstance(text, str):
        text = text.strip().removesuffix("/s")
    rate = round(_parse(text, _BYTES, example))
    if rate < 1:
        raise WeightguardError(f"{text!r:.40} is not {example}")
    return rate


def parse_seconds(text: str | float) -> float:
    """Return a duration in seconds, more than 0; raises WeightguardError for what is none."""
    seconds = _parse(text, _SECONDS, example := "a duration such as 60s")
    if not seconds:
        raise WeightguardError(f"{text!r:.40} is not {example}")
    return seconds


def _parse(text: str | float, units: dict[str, float] | dict[str, int], example: str) -> float:
    match = _QUANTITY.fullmatch(str(text))
    if match is None or match[2] not in units:
        raise WeightguardError(f"{text!r:.40} is not {example}")
    return float(match[1]) * units[match[2]]
