"""A manifest by its path, or one that is open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from weightguard import Manifest

PathOrManifest: TypeAlias = str | os.PathLike[str] | Manifest


@contextmanager
def opened(manifest: PathOrManifest | None) -> Iterator[Manifest | None]:
    """Open a manifest given by its path; leave one that is open to whoever opened it."""
    if manifest is None or isinstance(manifest, Manifest):
        yield manifest
        return
    with Manifest.read(manifest) as read:
        yield read
