"""The memory that a file is mapped to in this process: found, shown to be read, and reached.

Linux only: /proc/self/maps says where, /proc/self/pagemap which pages somebody touched.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weightguard.errors import WeightguardError

PAGE = mmap.PAGESIZE
PAGEMAP = Path("/proc/self/pagemap")

_MADV_DONTNEED = 4
_PRESENT = np.uint64(1) << np.uint64(63)
_ENTRY_BYTES = 8


@dataclass(frozen=True, slots=True)
class Mapping:
    """Bytes ``offset`` on of a file, mapped privately to ``start:stop``."""

    start: int
    stop: int
    offset: int
    writable: bool

    def address(self, offset: int, nbytes: int) -> int | None:
        """Return the address of a range of the file, None where it is not mapped whole."""
        inside = self.offset <= offset and offset + nbytes <= self.offset + self.stop - self.start
        return self.start + offset - self.offset if inside else None


def mappings_of(path: Path) -> list[Mapping]:
    """Return the private mappings of the file at ``path``, by address.

    By its name: a file with several names is found under the one that it was opened by.
    """
    wanted = os.fsencode(os.path.realpath(path))
    found = []
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5].replace(b"\\012", b"\n") == wanted:
            start, stop = (int(end, 16) for end in parts[0].split(b"-"))
            if parts[1].endswith(b"p"):
                found.append(Mapping(start, stop, int(parts[2], 16), b"w" in parts[1]))
    return found


def forget_accesses(mappings: Iterable[Mapping]) -> None:
    """Have the next access to each page noticed: the process gives its clean pages back.

    Pages that were written since they were mapped lose that: they are the file's again.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for mapping in mappings:
        length = mapping.stop - mapping.start
        if libc.madvise(ctypes.c_void_p(mapping.start), ctypes.c_size_t(length), _MADV_DONTNEED):
            raise WeightguardError(f"madvise failed: {os.strerror(ctypes.get_errno())}")


def accessed_pages(address: int, nbytes: int) -> int:
    """Return how many pages of a range were accessed since ``forget_accesses``.

    The kernel maps up to 16 neighbours of a page that is read, never beyond one mapping of a
    file: 0 proves that nobody read the range.
    """
    first, last = address // PAGE, (address + nbytes - 1) // PAGE
    try:
        with PAGEMAP.open("rb", buffering=0) as file:
            file.seek(first * _ENTRY_BYTES)
            entries = file.read((last - first + 1) * _ENTRY_BYTES)
    except OSError as error:
        raise WeightguardError(
            f"/proc/self/pagemap cannot be read ({error.strerror}), so it cannot be shown that "
            "the watched weights are the ones that run: use mode='opaque'"
        ) from error
    return int(np.count_nonzero(np.frombuffer(entries, np.uint64) & _PRESENT))
