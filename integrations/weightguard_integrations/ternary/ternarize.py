"""From a checkpoint of float weights to a folder of packed, attested ternary ones."""

from __future__ import annotations

import fnmatch
import os
import shutil
import stat
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightguard import Manifest, TensorView, WeightguardError, fingerprint, open_checkpoint
from weightguard.progress import Meter, Progress
from weightguard_integrations.ternary.attested import (
    FLOATS,
    as_values,
    read_attested,
    require_same_names,
)
from weightguard_integrations.ternary.folder import MANIFEST, WEIGHTS, FolderWriter
from weightguard_integrations.ternary.imports import absmean
from weightguard_integrations.ternary.packable import require_packable
from weightguard_integrations.ternary.packed import PackedTernary

LAYERS = "*_proj.weight"
"""Attention and MLP projections, as Hugging Face names them."""

BESIDE = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
          "vocab.*", "merges.txt", "chat_template*")  # fmt: skip
"""Small files that go along, regular ones only."""
MAX_BESIDE_BYTES = 64 << 20


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
    WeightguardError for a checkpoint that is not the manifest's or has nothing to pack, and for
    ``layers`` that name what is no linear layer's weight.
    """
    target = Path(out)
    if os.path.lexists(target):
        raise WeightguardError(f"{str(target)!r} exists already; name a new folder.")
    if not target.parent.is_dir():
        raise WeightguardError(f"{str(target.parent)!r} is no folder; make it first.")
    kept = _confirmed(manifest) if keep_super_weights else {}
    with (
        open_checkpoint(source) as checkpoint,
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work,
    ):
        if manifest is not None:
            require_same_names(checkpoint.tensors, manifest)
        for tensor in checkpoint.tensors:
            if _is_packed(tensor, layers):
                require_packable(tensor, checkpoint.config or {})
        made = Path(work) / target.name
        made.mkdir()
        writer = FolderWriter(Path(work) / "data")
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


def _convert(
    tensor: TensorView,
    layers: str,
    kept: dict[str, list[tuple[int, int]]],
    manifest: Manifest | None,
    writer: FolderWriter,
) -> None:
    data = read_attested(tensor, manifest)
    if not _is_packed(tensor, layers):
        if tensor.dtype.block_elements != 1:
            raise WeightguardError(
                f"{tensor.name!r:.200} is {tensor.dtype.name}, not float weights"
            )
        for name in (tensor.name, *tensor.aliases):
            writer.add(name, tensor.dtype.name, tensor.shape, data)
        return
    floats = _finite(tensor, data)
    codes, scale = absmean(floats)
    beside = [(*place, float(floats[place])) for place in kept.get(tensor.name, [])]
    for row, column, _ in beside:
        codes[row, column] = 0
    writer.add_layer(PackedTernary.from_int8(codes, scale, name=tensor.name), beside)


def _is_packed(tensor: TensorView, layers: str) -> bool:
    matrix = len(tensor.shape) == 2 and 0 not in tensor.shape and tensor.dtype.name in FLOATS
    return matrix and fnmatch.fnmatchcase(tensor.name, layers)


def _finite(tensor: TensorView, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = as_values(tensor, data)
    if not np.isfinite(values).all():
        raise WeightguardError(
            f"{tensor.name!r:.200} holds NaN or infinities; `weightguard audit` places them."
        )
    return values


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
