"""A folder of packed, attested weights: how it is written, and how it is read back.

One safetensors file holds, for a layer NAME, ``NAME.packed`` (U8 [groups, bytes of a group]),
``NAME.scale`` (F32 [1]) and, where weights are kept in full precision, ``NAME.kept_index`` (I64
[n, 2]: row, column) and ``NAME.kept_value`` (F32 [n]), whose packed weights are 0. The names are
those of the live tensors of ``layers.TernaryLinear``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from weightguard import Manifest, WeightguardError, open_checkpoint
from weightguard_integrations.ternary.attested import (
    COPY_BYTES,
    as_values,
    read_attested,
    require_same_names,
)
from weightguard_integrations.ternary.packed import PackedTernary

WEIGHTS, MANIFEST = "model.safetensors", "model.weightguard.json"
METADATA, LAYOUT = "weightguard_ternary", "ternary-layout-v1"

Kept = list[tuple[int, int, float]]
"""Row, column and value of weights in full precision."""


class FolderWriter:
    """Collects tensors in a file of data, then puts the header before it."""

    def __init__(self, data: Path):
        """``data`` is a file to work in."""
        self._path = data
        self._data: IO[bytes] = data.open("wb")
        self._header: dict[str, Any] = {}
        self.layers: dict[str, dict[str, int]] = {}
        self.kept: list[tuple[str, int, int]] = []
        self.nbytes = 0

    def add(self, name: str, dtype: str, shape: Sequence[int], data: NDArray[np.uint8]) -> None:
        """Write one tensor; raises WeightguardError for a name that is taken."""
        if name in self._header:
            raise WeightguardError(f"the checkpoint has a tensor named {name!r:.200} already")
        self._data.write(data.data)
        end = self.nbytes + data.nbytes
        self._header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [self.nbytes, end],
        }
        self.nbytes = end

    def add_layer(self, matrix: PackedTernary, kept: Kept) -> None:
        """Write a packed matrix and the weights that it is kept beside."""
        name, geometry = matrix.name, matrix.geometry
        self.add(f"{name}.packed", "U8", matrix.groups.shape, matrix.packed)
        self.add(f"{name}.scale", "F32", matrix.scales.shape, matrix.scales.view(np.uint8))
        self.layers[name] = {
            "rows": geometry.rows, "columns": geometry.columns, "digits": geometry.digits,
        }  # fmt: skip
        if kept:
            index = np.array([place for *place, _ in kept], "<i8")
            values = np.array([value for *_, value in kept], "<f4")
            self.add(f"{name}.kept_index", "I64", index.shape, index.reshape(-1).view(np.uint8))
            self.add(f"{name}.kept_value", "F32", values.shape, values.view(np.uint8))
            self.kept += [(name, row, column) for row, column, _ in kept]

    def finish(self, path: Path) -> None:
        """Write the file of all tensors, and flush it to the disk."""
        described = {"layout": LAYOUT, "layers": self.layers}
        metadata = {METADATA: json.dumps(described, sort_keys=True)}
        header = json.dumps({"__metadata__": metadata, **self._header}).encode()
        header += b" " * (-len(header) % 8)
        self._data.close()
        with path.open("wb") as file, self._path.open("rb") as data:
            file.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(data, file, COPY_BYTES)
            file.flush()
            os.fsync(file.fileno())
        self._path.unlink()


def read_packed(folder: str | os.PathLike[str]) -> Iterator[tuple[PackedTernary, Kept]]:
    """Yield each packed layer, named as it was, and its kept weights.

    Every tensor must have the digest of the folder's manifest. Raises WeightguardError for
    others, and for packed weights that contradict their check rows or their layout.
    """
    path = Path(folder)
    with Manifest.read(path / MANIFEST) as manifest, open_checkpoint(path / WEIGHTS) as checkpoint:
        require_same_names(checkpoint.tensors, manifest)
        tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
        for name, form in _layers_of(path / WEIGHTS).items():
            parts = {
                suffix: read_attested(tensors[part], manifest)
                for suffix in ("packed", "scale", "kept_index", "kept_value")
                if (part := f"{name}.{suffix}") in tensors
            }
            try:
                yield _layer(name, form, parts)
            except (KeyError, TypeError, ValueError) as error:
                raise WeightguardError(f"packed layer {name!r:.200}: {error}") from error


def read_others(folder: str | os.PathLike[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield name and float32 values of each tensor that was not packed, compared as above."""
    path = Path(folder)
    packed = tuple(f"{name}." for name in _layers_of(path / WEIGHTS))
    with Manifest.read(path / MANIFEST) as manifest, open_checkpoint(path / WEIGHTS) as checkpoint:
        require_same_names(checkpoint.tensors, manifest)
        for tensor in checkpoint.tensors:
            if not tensor.name.startswith(packed):
                yield tensor.name, as_values(tensor, read_attested(tensor, manifest))


def _layer(name: str, form: Any, parts: dict[str, NDArray[np.uint8]]) -> tuple[PackedTernary, Kept]:
    rows, columns, digits = (int(form[key]) for key in ("rows", "columns", "digits"))
    scale = parts["scale"].view("<f4")
    matrix = PackedTernary.from_packed(parts["packed"], scale, (rows, columns), digits, name=name)
    if "kept_index" not in parts:
        return matrix, []
    codes = matrix.unpack()
    places = parts["kept_index"].view("<i8").reshape(-1, 2).tolist()
    values = parts["kept_value"].view("<f4").tolist()
    for row, column in places:
        if not (0 <= row < rows and 0 <= column < columns) or codes[row, column]:
            raise ValueError("it keeps a weight that it does not have, or that is packed, too")
    kept = zip(places, values, strict=True)
    return matrix, [(row, column, value) for (row, column), value in kept]


def _layers_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")  # bounded: the checkpoint was opened
        header = json.loads(file.read(size))
    try:
        described = json.loads(header["__metadata__"][METADATA])
        if described["layout"] != LAYOUT:
            raise WeightguardError(f"{str(path)!r} has layout {described['layout']!r:.40}")
        return dict(described["layers"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightguardError(f"{str(path)!r} does not describe packed layers") from error
