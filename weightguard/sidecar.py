"""The sidecar: a manifest's bulk arrays in one safetensors file, written and read by ranges.

Arrays of tensor number i (in name order) are called ``i/blocks`` (uint8, blocks x 16),
``i/residues`` (uint64, rows x 2), ``i/row_absmax`` and ``i/column_absmax`` (unsigned magnitude
bits of the scalar's width). Rows are written as the scan finds them, so the memory needed does
not grow with the checkpoint.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from weightguard.checkpoint.container import ParsedFile
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.safetensors import parse_safetensors
from weightguard.errors import CheckpointError, ManifestError
from weightguard.scan.digest import BLOCK_DIGEST_BYTES, block_count, new_hasher
from weightguard.scan.fingerprint import has_columns
from weightguard.scan.formats import FORMATS
from weightguard.tensor import TensorView

COPY_BYTES = 1 << 20
FETCH_AGAIN = "Fetch it again from where the manifest came."
"""Not: write the manifest again, for who knows what the weights are by now?"""

_DTYPE_NAMES = {
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float32": "F32",
}


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of the sidecar: name, element dtype and shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """The size in bytes of one step along the first axis."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.shape[0] * self.row_bytes


def array_specs(number: int, tensor: TensorView) -> tuple[ArraySpec, ...]:
    """Return the arrays that the sidecar holds for tensor ``number``; a function of its type."""
    layout = tensor.layout
    magnitude = FORMATS[tensor.dtype.scalar].magnitude_dtype
    specs = [
        ArraySpec(
            f"{number}/blocks",
            np.dtype(np.uint8),
            (block_count(tensor.nbytes), BLOCK_DIGEST_BYTES),
        ),
        ArraySpec(f"{number}/residues", np.dtype(np.uint64), (layout.rows, 2)),
        ArraySpec(f"{number}/row_absmax", magnitude, (layout.rows,)),
    ]
    if has_columns(tensor):
        specs.append(ArraySpec(f"{number}/column_absmax", magnitude, (layout.row_scalars,)))
    return tuple(specs)


class SidecarWriter:
    """Writes arrays by ranges, in any order and from several threads, into an unnamed file."""

    def __init__(self, specs: Iterable[ArraySpec]):
        # widest elements first, so that every array is aligned to its element
        ordered = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
        header: list[str] = []
        self._starts: dict[str, tuple[int, int]] = {}
        end = 0
        for spec in ordered:
            stop = end + spec.nbytes
            header.append(_header_entry(spec, end, stop))
            self._starts[spec.name] = (end, spec.row_bytes)
            end = stop
        del ordered
        text = f"{{{','.join(header)}}}".encode()
        del header
        text += b" " * (-len(text) % 8)
        self._data = 8 + len(text)
        self.file: IO[bytes] = tempfile.TemporaryFile(prefix="weightguard-")  # noqa: SIM115
        self.file.write(len(text).to_bytes(8, "little") + text)
        self.file.truncate(self._data + end)
        self.file.flush()

    def write(self, name: str, first: int, rows: NDArray[Any]) -> None:
        """Write ``rows`` at index ``first`` of the first axis of array ``name``."""
        start, row_bytes = self._starts[name]
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        offset = self._data + start + first * row_bytes
        while data:
            written = os.pwrite(self.file.fileno(), data, offset)
            data, offset = data[written:], offset + written

    def read(self, name: str, first: int, count: int) -> NDArray[Any]:
        """Return ``count`` bytes that were written to the byte array ``name``, from ``first`` on.

        Raises OSError when they were not.
        """
        result = np.empty(count, np.uint8)
        offset, done = self._data + self._starts[name][0] + first, 0
        while done < count:
            piece = os.preadv(self.file.fileno(), [result.data[done:]], offset + done)
            if not piece:
                raise OSError(f"the temporary file of {name} ends early")
            done += piece
        return result

    def finish(self) -> Sidecar:
        """Return what was written, opened for reading; nothing can be written after it."""
        self._starts = {}
        sidecar = Sidecar.parse(CheckpointFile.adopt(self.file.fileno(), "sidecar"))
        self.file.close()
        return sidecar


def _header_entry(spec: ArraySpec, start: int, stop: int) -> str:
    # names are our own: nothing in them needs an escape
    shape = ",".join(map(str, spec.shape))
    return (
        f'"{spec.name}":{{"dtype":"{_DTYPE_NAMES[spec.dtype.name]}","shape":[{shape}],'
        f'"data_offsets":[{start},{stop}]}}'
    )


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A sidecar opened for reading."""

    file: CheckpointFile
    arrays: dict[str, TensorView]

    @classmethod
    def open(
        cls, path: Path, name: str, what: str = "sidecar", remedy: str = FETCH_AGAIN
    ) -> Sidecar:
        """Open and validate the structure of a sidecar; ManifestError where it is damaged."""
        try:
            file = CheckpointFile(path, name)
        except CheckpointError as error:
            raise ManifestError(f"the manifest's {what} {error}. {remedy}") from error
        return cls.parse(file, what, remedy)

    @classmethod
    def parse(
        cls, file: CheckpointFile, what: str = "sidecar", remedy: str = FETCH_AGAIN
    ) -> Sidecar:
        """Return the sidecar in an open file; closes the file and raises where it is damaged."""
        try:
            parsed: ParsedFile = parse_safetensors(file)
            reason = parsed.findings[0].message if parsed.findings else None
        except CheckpointError as error:
            reason = str(error)
        if reason is not None:
            file.close()
            raise ManifestError(f"the manifest's {what} is damaged: {reason}. {remedy}")
        return cls(file, {view.name: view for view in parsed.tensors})

    def read(self, name: str, first: int = 0, count: int | None = None) -> NDArray[Any]:
        """Return ``count`` rows (to the end by default) of array ``name`` from ``first`` on."""
        view = self.arrays[name]
        dtype = np.dtype(next(n for n, d in _DTYPE_NAMES.items() if d == view.dtype.name))
        rows = view.shape[0] - first if count is None else count
        result = np.empty((rows, *view.shape[1:]), dtype)
        if result.size:
            step = view.nbytes // view.shape[0]
            view.source.read_into(first * step, result.reshape(-1).view(np.uint8).data)
        return result

    def copy_array(self, spec: ArraySpec, writer: SidecarWriter) -> None:
        """Write the whole array into another sidecar, in pieces of about 1 MiB."""
        if not spec.nbytes:
            return
        step = max(1, COPY_BYTES // spec.row_bytes)
        for first in range(0, spec.shape[0], step):
            writer.write(
                spec.name, first, self.read(spec.name, first, min(step, spec.shape[0] - first))
            )

    def matches(self, spec: ArraySpec) -> bool:
        """Return whether the sidecar holds the array as the specification demands it."""
        view = self.arrays.get(spec.name)
        return (
            view is not None
            and view.shape == spec.shape
            and view.dtype.name == _DTYPE_NAMES[spec.dtype.name]
        )

    def digest(self) -> str:
        """Return ``blake3:HEX`` of the whole file."""
        return digest_of(self.file)

    def copy_to(self, target: IO[bytes]) -> None:
        """Write the whole file into ``target``."""
        for offset in range(0, self.file.size, COPY_BYTES):
            length = min(COPY_BYTES, self.file.size - offset)
            target.write(self.file.read(offset, length, limit=COPY_BYTES))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def digest_of(file: CheckpointFile) -> str:
    """Return ``blake3:HEX`` of a whole file, read in pieces."""
    hasher = new_hasher("blake3")
    for offset in range(0, file.size, COPY_BYTES):
        hasher.update(file.read(offset, min(COPY_BYTES, file.size - offset), limit=COPY_BYTES))
    return f"blake3:{hasher.hexdigest()}"


__all__ = ["FETCH_AGAIN", "ArraySpec", "Sidecar", "SidecarWriter", "array_specs", "digest_of"]
