"""Is the model the one of the manifest? Asked of the files before, and of the memory after."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from weightguard import Manifest, Severity, verify
from weightguard.errors import WeightguardError
from weightguard.manifest import ManifestDocument, TensorRecord
from weightguard.scan.digest import BLOCK_BYTES, tensor_hasher

if TYPE_CHECKING:
    import torch

_TORCH_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Dtypes that a cast to float32 and back leaves as they are."""


def check_checkpoint(
    path: str | os.PathLike[str], manifest: Manifest, threads: int | None = None
) -> None:
    """Raise WeightguardError unless the checkpoint at ``path`` is that of the manifest."""
    report = verify(path, manifest, threads=threads)
    found = report.at_least(Severity.ERROR)
    if found or not report.complete:
        first = (found or report.findings)[0]
        place = f" in {first.location.tensor[:200]!r}" if first.location.tensor else ""
        raise WeightguardError(
            "the manifest is of another model, or the checkpoint changed since it was written: "
            f"{first.rule}{place}, {first.message}. Name the manifest of this checkpoint, or see "
            "what changed with `weightguard verify`."
        )


def check_numbers(document: ManifestDocument) -> None:
    """Raise WeightguardError for weights that are NaN or infinite: nothing can be measured."""
    for name, record in sorted(document.tensors.items()):
        bad = record.statistics.nan + record.statistics.inf
        if bad:
            raise WeightguardError(
                f"{bad} weights of {name[:200]!r} are NaN or infinite, so the model cannot be "
                "calibrated. Restore them from a trusted copy; `weightguard audit` places them."
            )


def check_loaded(parameters: dict[str, torch.Tensor], document: ManifestDocument) -> int:
    """Compare loaded weights with the manifest by digest; return how many could be compared.

    ``parameters`` are by their names in the manifest. Raises WeightguardError for one that
    differs: another file was loaded than was verified, or it changed in between.
    """
    compared = 0
    for name, weight in sorted(parameters.items()):
        record = document.tensors.get(name)
        if record is None or record.shape != tuple(weight.shape):
            continue
        digest = _digest(weight, record, document)
        if digest is None:
            continue
        if digest != record.digest:
            raise WeightguardError(
                f"the loaded {name[:200]!r} is not the attested one: another file was loaded "
                "than was verified. Keep one checkpoint in the folder, and try again."
            )
        compared += 1
    return compared


def _digest(weight: torch.Tensor, record: TensorRecord, document: ManifestDocument) -> str | None:
    import torch

    dtype = _TORCH_DTYPES.get(record.dtype)
    if dtype is None:
        return None
    hasher = tensor_hasher(document.digest_algorithm, record.dtype, record.shape)
    flat = weight.detach().reshape(-1)
    step = BLOCK_BYTES // 4
    for first in range(0, flat.numel(), step):
        piece = flat[first : first + step].to(getattr(torch, dtype)).view(torch.uint8)
        hasher.update(piece.numpy().data)
    return f"{document.digest_algorithm}:{hasher.hexdigest()}"
