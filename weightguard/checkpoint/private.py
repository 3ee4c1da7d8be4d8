"""Private copies of files: bytes that are read once and that nobody else can change afterwards."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable

from weightguard.errors import WeightguardError

_COPY_BYTES = 1 << 20

ReadInto = Callable[[int, memoryview], None]


def private_copy(name: str, size: int, read_into: ReadInto) -> int:
    """Return the descriptor of an unnamed copy of ``size`` bytes, in memory where Linux runs.

    Its content can never change again there. Elsewhere it is an unnamed file in the system's folder
    for temporary files. Raises WeightguardError where it does not fit.
    """
    descriptor = _unnamed()
    buffer = memoryview(bytearray(min(_COPY_BYTES, size)))
    done = 0
    try:
        while done < size:
            piece = buffer[: min(_COPY_BYTES, size - done)]
            read_into(done, piece)
            done += os.pwrite(descriptor, piece, done)
        _freeze(descriptor)
    except OSError as error:
        os.close(descriptor)
        raise WeightguardError(
            f"no room for a private copy of {name!r:.200} ({size} bytes): {error.strerror}; "
            "free memory, since weights are verified in a copy that nobody can change"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _unnamed() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("weightguard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _freeze(descriptor: int) -> None:
    if hasattr(fcntl, "F_ADD_SEALS"):
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
