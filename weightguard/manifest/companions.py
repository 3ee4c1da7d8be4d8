"""What lies at a manifest's path and belongs to it: names of sidecars, and what may be replaced."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from weightguard.errors import ManifestError
from weightguard.manifest.reading import MAX_JSON_BYTES

SIDECAR_NAME_DIGITS = 16
SIDECAR_SUFFIX, PARITY_SUFFIX = ".sidecar", ".parity"


def sidecar_name(path: Path, digest: str, suffix: str = SIDECAR_SUFFIX) -> str:
    """Return the name of a sidecar of the manifest ``path``: ``STEM-DIGITS.sidecar``."""
    stem = path.name.removesuffix(".json")
    return f"{stem}-{digest.partition(':')[2][:SIDECAR_NAME_DIGITS]}{suffix}"


def is_manifest(path: Path) -> bool:
    """Return whether the file is a manifest of any version, by what it says of itself."""
    return _kept(path) is not None


def refuse_replacing(path: Path) -> None:
    """Raise ManifestError when ``path`` is a file that holds anything but a manifest."""
    try:
        size = path.lstat().st_size
    except OSError:
        return
    if size and not is_manifest(path):
        raise ManifestError(
            f"{str(path)!r} exists and is no manifest: it would be overwritten. Name another file."
        )


def previous_companions(path: Path) -> set[str]:
    """Return the names of what belongs to the manifest now at ``path`` and goes with it."""
    kept = _kept(path)
    names = () if kept is None else (kept.sidecar.get("name"), kept.parity.get("name"))
    pattern = re.compile(sidecar_pattern(path))
    return {name for name in names if isinstance(name, str) and pattern.fullmatch(name)}


def sidecar_pattern(path: Path) -> str:
    """Return the pattern of the names of all sidecars that manifests at ``path`` ever had."""
    stem = re.escape(path.name.removesuffix(".json"))
    return rf"{stem}-[0-9a-f]{{{SIDECAR_NAME_DIGITS}}}\.(?:sidecar|parity)"


class _Kept(msgspec.Struct):
    """What is read of a file that a manifest would replace."""

    schema: str
    sidecar: dict[str, Any] = {}
    parity: dict[str, Any] = {}


def _kept(path: Path) -> _Kept | None:
    """Return what the manifest at ``path`` says of itself, of whatever version, or None."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES or not path.is_file():
            return None
        # weights of many gigabytes need not be read to see that they are no JSON
        with path.open("rb") as file:
            if file.read(1) != b"{":
                return None
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, ValueError, RecursionError):
        return None
    return kept if re.fullmatch(r"weightguard-manifest-v\d{1,9}", kept.schema) else None
