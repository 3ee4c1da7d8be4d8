"""Paths that a policy names: beside it, or in the checkpoint's folder."""

from __future__ import annotations

from pathlib import Path

from weightguard.policy.document import PolicyError


def place_of(pattern: str, checkpoint: Path, folder: Path) -> Path:
    """Return what a path of a policy means: relative to ``folder``, or in the checkpoint's.

    Raises PolicyError where a link leads out of the checkpoint's folder.
    """
    real = checkpoint.resolve()
    home = home_of(checkpoint)
    name = real.name if real.is_dir() else real.name.partition(".")[0] or real.name
    path = folder / pattern.replace("{checkpoint}", str(home)).replace("{name}", name)
    if pattern.startswith("{checkpoint}/") and not path.resolve().is_relative_to(home):
        raise PolicyError(
            f"{str(path)!r} leads out of the checkpoint's folder. Name it where it is."
        )
    return path


def home_of(checkpoint: Path) -> Path:
    """Return the folder that a checkpoint, a file or a folder, lies in; a missing one is its own.

    So nothing lies with a checkpoint that is not there.
    """
    real = checkpoint.resolve()
    return real.parent if real.exists() and not real.is_dir() else real
