"""From a checkpoint of float weights to a folder of packed, attested ternary ones, and back."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import stat
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from weightguard import Manifest, TensorView, WeightguardError, fingerprint, open_checkpoint
from weightguard.progress import Meter, Progress
from weightguard.scan.digest import tensor_hasher
from weightguard_integrations.ternary.imports import absmean
from weightguard_integrations.ternary.matrix import PackedTernary

LAYERS = "*_proj.weight"
"""Attention and MLP projections, as Hugging Face names them."""

WEIGHTS, MANIFEST = "model.safetensors", "model.weightguard.json"
METADATA, LAYOUT = "weightguard_ternary", "ternary-layout-v1"
BESIDE = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
          "vocab.*", "merges.txt", "chat_template*")  # fmt: skip
"""Small files that go along, regular ones only."""
MAX_BESIDE_BYTES = 64 << 20
COPY_BYTES = 1 << 20
FLOATS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True)
class Ternarized:
    """What was made: names of packed layers, weights kept, and bytes before and after."""

    layers: tuple[str, ...]
    kept: tuple[tuple[str, int, int], ...]
    bytes_before: int
    bytes_after: int


def ternarize(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layers: str = LAYERS,
    manifest: Manifest | None = None,
    keep_super_weights: bool = False,
    progress: Progress | None = None,
) -> Ternarized:
    """Quantise and pack the matrices whose names match ``layers``; write them to folder ``out``.

    ``out`` gets a safetensors file with packed weights, scales and everything else unchanged, the
    model's small files, and a manifest. With ``manifest``, every tensor read must have its digest.
    ``keep_super_weights`` keeps the manifest's confirmed super weights in full precision. The
    folder appears when all is written; it must not exist. Raises CheckpointError, OSError, and
    WeightguardError for a checkpoint that is not the manifest's or has nothing to pack.
    """
    target = Path(out)
    if os.path.lexists(target):
        raise WeightguardError(f"{str(target)!r} exists already; name a new folder.")
    kept = _confirmed(manifest) if keep_super_weights else {}
    with (
        open_checkpoint(source) as checkpoint,
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work,
    ):
        if manifest is not None:
            _same_names(checkpoint.tensors, manifest)
        made = Path(work) / target.name
        made.mkdir()
        writer = _Writer(Path(work) / "data")
        meter = Meter(checkpoint.nbytes, progress)
        for tensor in sorted(checkpoint.tensors, key=lambda t: t.name):
            _convert(tensor, layers, kept, manifest, writer)
            meter.add(tensor.nbytes)
        if not writer.layers:
            raise WeightguardError(
                f"no matrix of float weights matches {layers!r:.100}. Name others with --layers."
            )
        writer.finish(made / WEIGHTS)
        _copy_beside(Path(source), made)
        with fingerprint(made) as attested:
            attested.write(made / MANIFEST)
        made.rename(target)
        return Ternarized(
            tuple(writer.layers), tuple(writer.kept), checkpoint.nbytes, writer.nbytes
        )


def read_packed(
    folder: str | os.PathLike[str],
) -> Iterator[tuple[str, PackedTernary, list[tuple[int, int, float]]]]:
    """Yield name, matrix and kept weights (row, column, what to add) of each packed layer.

    Every tensor must have the digest of the folder's manifest. Raises WeightguardError for
    others, and for packed weights that contradict their check rows or their layout.
    """
    path = Path(folder)
    with Manifest.read(path / MANIFEST) as manifest, open_checkpoint(path / WEIGHTS) as checkpoint:
        _same_names(checkpoint.tensors, manifest)
        tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
        for name, form in _layers_of(path / WEIGHTS).items():
            parts = [
                _read(tensors[part], manifest) if (part := f"{name}.{suffix}") in tensors else None
                for suffix in ("packed", "scale", "kept_index", "kept_value")
            ]
            yield _layer(name, form, *parts)


def read_others(folder: str | os.PathLike[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield name and float32 values of each tensor that was not packed, compared as above."""
    path = Path(folder)
    packed = tuple(f"{name}." for name in _layers_of(path / WEIGHTS))
    with Manifest.read(path / MANIFEST) as manifest, open_checkpoint(path / WEIGHTS) as checkpoint:
        _same_names(checkpoint.tensors, manifest)
        for tensor in checkpoint.tensors:
            if not tensor.name.startswith(packed):
                yield tensor.name, _values(tensor, _read(tensor, manifest))


def _layer(
    name: str, form: Any, packed: Any, scale: Any, index: Any, value: Any
) -> tuple[str, PackedTernary, list[tuple[int, int, float]]]:
    try:
        rows, columns, digits = (int(form[key]) for key in ("rows", "columns", "digits"))
        scales = scale.view("<f4")
        matrix = PackedTernary.from_packed(packed, scales, (rows, columns), digits, name=name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightguardError(f"packed layer {name!r:.200}: {error}") from error
    if index is None:
        return name, matrix, []
    codes = matrix.unpack()
    kept = []
    for (row, column), exact in zip(
        index.view("<i8").reshape(-1, 2).tolist(), value.view("<f4").tolist(), strict=True
    ):
        if not (0 <= row < rows and 0 <= column < columns):
            raise WeightguardError(f"packed layer {name!r:.200} keeps a weight it does not have")
        kept.append((row, column, exact - float(codes[row, column]) * float(scales[0])))
    return name, matrix, kept


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


class _Writer:
    """Collects tensors in a file of data, then puts the header before it."""

    def __init__(self, data: Path):
        self._path = data
        self._data: IO[bytes] = data.open("wb")
        self._header: dict[str, Any] = {}
        self.layers: dict[str, dict[str, int]] = {}
        self.kept: list[tuple[str, int, int]] = []
        self.nbytes = 0

    def add(self, name: str, dtype: str, shape: Sequence[int], data: NDArray[np.uint8]) -> None:
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

    def finish(self, path: Path) -> None:
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


def _convert(
    tensor: TensorView,
    layers: str,
    kept: dict[str, list[tuple[int, int]]],
    manifest: Manifest | None,
    writer: _Writer,
) -> None:
    data = _read(tensor, manifest)
    floats = _floats(tensor, data) if fnmatch.fnmatchcase(tensor.name, layers) else None
    if floats is None:
        if tensor.dtype.block_elements != 1:
            raise WeightguardError(
                f"{tensor.name!r:.200} is {tensor.dtype.name}, not float weights"
            )
        for name in (tensor.name, *tensor.aliases):
            writer.add(name, tensor.dtype.name, tensor.shape, data)
        return
    codes, scale = absmean(floats)
    matrix = PackedTernary.from_int8(codes, scale, name=tensor.name)
    geometry = matrix.geometry
    name, shape = tensor.name, (geometry.all_groups, geometry.group_bytes)
    writer.add(f"{name}.packed", "U8", shape, matrix.packed)
    writer.add(f"{name}.scale", "F32", (1,), matrix.scales.view(np.uint8))
    writer.layers[name] = {
        "rows": geometry.rows, "columns": geometry.columns, "digits": geometry.digits,
    }  # fmt: skip
    places = kept.get(name, [])
    if places:
        values = np.array([floats[place] for place in places], "<f4")
        index = np.array(places, "<i8")
        writer.add(f"{name}.kept_index", "I64", index.shape, index.view(np.uint8).reshape(-1))
        writer.add(f"{name}.kept_value", "F32", values.shape, values.view(np.uint8))
        writer.kept += [(name, *place) for place in places]


def _floats(tensor: TensorView, data: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Return a float matrix as float32, None for what is none."""
    if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.dtype.name not in FLOATS:
        return None
    values = _values(tensor, data)
    if not np.isfinite(values).all():
        raise WeightguardError(
            f"{tensor.name!r:.200} holds NaN or infinities; `weightguard audit` places them."
        )
    return values


def _values(tensor: TensorView, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    if tensor.dtype.name == "BF16":
        bits = data.view("<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(tensor.shape)
    if tensor.dtype.name not in FLOATS:
        raise WeightguardError(f"{tensor.name!r:.200} is {tensor.dtype.name}, not float weights")
    return data.view(FLOATS[tensor.dtype.name]).astype(np.float32).reshape(tensor.shape)


def _read(tensor: TensorView, manifest: Manifest | None) -> NDArray[np.uint8]:
    """Return a tensor's bytes, whose digest is the manifest's."""
    data = np.empty(tensor.nbytes, np.uint8)
    for start in range(0, len(data), COPY_BYTES):
        tensor.source.read_into(start, data[start : start + COPY_BYTES].data)
    if manifest is not None:
        algorithm = manifest.document.digest_algorithm
        hasher = tensor_hasher(algorithm, tensor.dtype.name, tensor.shape)
        hasher.update(data.data)
        record = manifest.document.tensors[tensor.name]
        if f"{algorithm}:{hasher.hexdigest()}" != record.digest:
            raise WeightguardError(
                f"{tensor.name!r:.200} is not the attested one: it changed since the manifest was "
                "written. See what changed with `weightguard verify`."
            )
    return data


def _same_names(tensors: Sequence[TensorView], manifest: Manifest) -> None:
    different = {tensor.name for tensor in tensors} ^ set(manifest.document.tensors)
    if different:
        raise WeightguardError(
            f"checkpoint and manifest differ in {len(different)} tensors, the first "
            f"{sorted(different)[0]!r:.200}. Name the manifest of this checkpoint."
        )


def _confirmed(manifest: Manifest | None) -> dict[str, list[tuple[int, int]]]:
    if manifest is None:
        raise WeightguardError("keeping super weights needs the checkpoint's manifest (-m).")
    found = defaultdict(list)
    for weight in manifest.document.salience.super_weights:
        if weight.status == "confirmed" and len(weight.index) == 2:
            row, column = weight.index
            found[weight.tensor].append((row, column))
    if not found:
        raise WeightguardError(
            "the manifest has no confirmed super weights; `weightguard calibrate` finds them."
        )
    return found


def _copy_beside(source: Path, made: Path) -> None:
    folder = source if source.is_dir() else source.parent
    for path in sorted(folder.iterdir()):
        if not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in BESIDE):
            continue
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_BESIDE_BYTES:
            shutil.copyfile(path, made / path.name, follow_symlinks=False)
