"""Writing results: to standard output, or whole and at once into a file."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from weightguard.atomic import atomic_write
from weightguard.errors import WeightguardError

STANDARD_OUTPUT = Path("-")


def deliver(text: str, target: Path | None) -> None:
    """Write ``text`` to a file, replacing it at once, or to standard output for None and ``-``.

    Raises WeightguardError when it cannot be written.
    """
    if target is None or target == STANDARD_OUTPUT:
        _print(text)
        return
    try:
        _write(text.encode("utf-8"), target)
    except OSError as error:
        raise WeightguardError(
            f"cannot write {str(target)!r}: {error.strerror}. Check the free space and the "
            "permissions, or name another place."
        ) from error


def _write(data: bytes, target: Path) -> None:
    real = target.resolve()
    if real.exists() and not stat.S_ISREG(real.stat().st_mode):
        # a pipe or /dev/null is written to; renaming a file over it would destroy it
        with target.open("wb") as file:
            file.write(data)
        return
    with atomic_write(real) as file:
        file.write(data)


def _print(text: str) -> None:
    if sys.stdout is None:
        return  # closed by whoever only wants the exit status
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_output()
    except OSError as error:
        abandon_output()
        raise WeightguardError(
            f"cannot write the output: {error.strerror}. Check the free space where it goes."
        ) from error


def abandon_output() -> None:
    """Send what is still buffered for standard output nowhere: its reader has left."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
