"""Checkpoints with manifests, and damage to them, for the tests of repair."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import Tensors, random_tensor, write_sharded
from weightguard import Manifest, fingerprint

MIB = 1 << 20

SHARDS: list[Tensors] = [
    {
        "a": random_tensor("BF16", (3, 700, 1280), 1),
        "b": random_tensor("F32", (70, 70), 2),
        "n": random_tensor("F32", (64,), 3),
    },
    {"c": random_tensor("F16", (5, 1000, 1000), 4), "e": ("F32", (0, 4), b"")},
]
"""15 MiB: one group of blocks, which restores one lost block."""


def write_model(folder: Path) -> Path:
    """Write a sharded folder with a tokenizer and return it."""
    write_sharded(folder, SHARDS)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("as it was")
    return folder


def attest(model: Path, path: Path, *, parity: bool = False) -> Path:
    """Write a manifest of ``model`` to ``path`` and return the path."""
    with fingerprint(model, parity=parity, threads=2) as made:
        made.write(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder`` by its relative name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Put ``data`` at ``offset`` of a file; nothing else of it changes."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def parity_of(manifest: Path) -> Path:
    """Return the parity sidecar beside a manifest."""
    with Manifest.read(manifest) as read:
        name: str = read.document.parity.name  # type: ignore[union-attr]
    return manifest.parent / name
