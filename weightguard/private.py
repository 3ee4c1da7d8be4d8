"""Folders of the user's that nobody else can write: what lies in them is believed later."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from weightguard.errors import WeightguardError


def user_cache(name: str) -> Path:
    """Return the user's cache folder ``name``: below XDG_CACHE_HOME, or below ~/.cache.

    A relative XDG_CACHE_HOME does not count, as its specification says. Raises WeightguardError
    where no absolute home is known either.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(named)
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            base = Path()
    if not base.is_absolute():
        raise WeightguardError(
            "this user has no home folder to keep a cache in: set XDG_CACHE_HOME to a folder"
        )
    return base / "weightguard" / name


def make_private(folder: Path, remedy: str) -> None:
    """Make ``folder`` where it is missing; raise WeightguardError unless only this user writes it.

    It must be a folder and no link, this user's own, and writable by neither group nor others.
    Each folder above it, and each link on the way, must belong to this user or to who owns the
    system, and only sticky folders may be writable by others. Groups may write above it: homes
    are often the user's private group's, and what took the folder's place would have to be this
    user's too. ``remedy`` says what else the user can do.
    """
    folder = folder.absolute()
    try:
        for missing in reversed([folder, *folder.parents]):
            missing.mkdir(mode=0o700, exist_ok=True)
        refusal = next(_refusals(folder), None)
    except OSError as error:
        raise WeightguardError(
            f"the folder {str(folder)!r} cannot be used: {error.strerror}. {remedy}"
        ) from error
    if refusal is not None:
        raise WeightguardError(
            f"the folder {str(folder)!r} is not yours alone, so others could change what is "
            f"believed later: {refusal}. {remedy}"
        )


def _refusals(folder: Path) -> Iterator[str]:
    found, user = folder.lstat(), os.geteuid()
    if not stat.S_ISDIR(found.st_mode):
        yield "it is no folder itself"
    if found.st_uid != user:
        yield "it belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield "group or others can write it; `chmod go-w` it"
    # whoever owns the root rules all below; in a container that may look like nobody
    owners = {user, 0, Path("/").stat().st_uid}
    for parent in (*folder.parents, *folder.resolve().parents):
        above = parent.lstat()
        open_to_all = above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX
        if above.st_uid not in owners:
            yield f"{str(parent)!r} belongs to another user"
        if stat.S_ISDIR(above.st_mode) and open_to_all:
            yield f"others can replace what lies in {str(parent)!r}; `chmod o-w` it"
