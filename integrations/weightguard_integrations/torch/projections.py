"""The modules that project an MLP's hidden units back to the residual stream, by manifest name.

Output channel ``row`` gets ``sum_j W[row, j] * x[j]``. GPT-2's Conv1D stores W transposed, and
so may the checkpoint; nothing here depends on which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightguard.manifest import ManifestDocument, TensorRecord
from weightguard.superweights.projections import names_projection

if TYPE_CHECKING:
    import torch
    from torch import nn

_BLOCK = re.compile(r"(?:.*\.)?\w+\.(\d{1,6})\..+")


@dataclass(frozen=True, slots=True)
class Projection:
    """One output projection: its module, where its weight is recorded, and how it is stored.

    ``transposed`` says that the module's weight is [units, outputs], ``recorded_transposed``
    that the manifest's tensor is.
    """

    name: str
    module: nn.Module
    layer: int
    tensor: str
    transposed: bool
    recorded_transposed: bool

    @property
    def weight(self) -> torch.Tensor:
        """W with shape [outputs, units]: a view of the live weight."""
        weight = self.module.get_parameter("weight").detach()
        return weight.T if self.transposed else weight

    def index(self, row: int, column: int) -> tuple[int, int]:
        """Return the index that W[row, column] has in the manifest's tensor."""
        return (column, row) if self.recorded_transposed else (row, column)

    def position(self, index: tuple[int, ...]) -> tuple[int, int]:
        """Return (row, column) of an element of the manifest's tensor."""
        first, second = index
        return (second, first) if self.recorded_transposed else (first, second)


def find_projections(model: nn.Module, document: ManifestDocument) -> tuple[Projection, ...]:
    """Return the output projections whose weights the manifest records, by layer and name."""
    recorded = recorded_names(document)
    prefix = getattr(model, "base_model_prefix", "")
    found = []
    for name, module in model.named_modules():
        projection = _projection(name, module, prefix, recorded, document)
        if projection is not None:
            found.append(projection)
    return tuple(sorted(found, key=lambda p: (p.layer, p.name)))


def uncalibrated(document: ManifestDocument, found: tuple[Projection, ...]) -> tuple[str, ...]:
    """Return the recorded tensors that are named like output projections and are none of these."""
    known = {projection.tensor for projection in found}
    names = [
        name
        for name, record in sorted(document.tensors.items())
        if len(record.shape) in (2, 3) and names_projection(name) and name not in known
    ]
    return tuple(names)


def recorded_names(document: ManifestDocument) -> dict[str, str]:
    """Return every name of a tensor, tied ones included, to the name of its record."""
    return {
        name: primary
        for primary, record in document.tensors.items()
        for name in (primary, *record.aliases)
    }


def named_as_recorded(model: nn.Module, document: ManifestDocument) -> dict[str, torch.Tensor]:
    """Return the model's parameters by the names of the manifest's records, where they agree."""
    recorded = recorded_names(document)
    prefix = getattr(model, "base_model_prefix", "")
    named = {}
    for name, weight in model.named_parameters():
        record = next((recorded[n] for n in _spellings(name, prefix) if n in recorded), None)
        if record is not None:
            named[record] = weight.detach()
    return named


def _projection(
    name: str,
    module: nn.Module,
    prefix: str,
    recorded: dict[str, str],
    document: ManifestDocument,
) -> Projection | None:
    import torch

    weight, block = getattr(module, "weight", None), _BLOCK.fullmatch(name)
    if not (names_projection(f"{name}.weight") and block and isinstance(weight, torch.Tensor)):
        return None
    if weight.ndim != 2:
        return None
    layer = int(block[1])
    names = (*_spellings(f"{name}.weight", prefix), f"blk.{layer}.ffn_down.weight")
    tensor = next((recorded[n] for n in names if n in recorded), None)
    if tensor is None:
        return None
    stored = _stored_transposed(weight, document.tensors[tensor])
    if stored is None:
        return None
    transposed = type(module).__name__ == "Conv1D"
    return Projection(name, module, layer, tensor, transposed, transposed != stored)


def _stored_transposed(weight: torch.Tensor, record: TensorRecord) -> bool | None:
    """Return whether the record is the weight's transpose, None where it is another tensor."""
    shape = tuple(weight.shape)
    if not _same_range(weight, record) or sorted(shape) != sorted(record.shape):
        return None
    return shape != record.shape


def _same_range(weight: torch.Tensor, record: TensorRecord) -> bool:
    """Return whether the weight's extrema are the recorded ones, as float32."""
    low, high = record.statistics.min, record.statistics.max
    if low is None or high is None:
        return False
    recorded = (float(np.float32(low.value)), float(np.float32(high.value)))
    live = weight.detach()
    return (float(live.min()), float(live.max())) == recorded


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    """Return the names that checkpoints give a parameter: with or without the model's prefix."""
    return (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
