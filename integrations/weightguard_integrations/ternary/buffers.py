"""The live memory of a packed layer, as torch sees it: buffers that share what products read.

Needs the extra ``torch``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from weightguard.finding import Finding
from weightguard_integrations.ternary.beside import Compared
from weightguard_integrations.ternary.incident import Alarm, bias_finding
from weightguard_integrations.ternary.kept import KEPT_INDEX, KEPT_PARTS, KEPT_VALUE, KeptWeights
from weightguard_integrations.ternary.live import PACKED, PARTS, SCALE
from weightguard_integrations.ternary.matrix import OnFault, PackedMatrix, Verify
from weightguard_integrations.ternary.operands import number_of


class PackedWeight(nn.Module):
    """The packed matrix of a layer and its weights in full precision, as buffers.

    ``packed`` and ``scale`` share the kernel's memory, ``kept_index`` (int64 [n, 2]: row, column)
    and ``kept_value`` (float32 [n]), there only if weights are kept, that of ``kept``, whatever is
    done to the module: who guards live tensors guards what runs. None is saved with a state: a
    packed layer is made anew from attested weights.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    kept_index: torch.Tensor
    kept_value: torch.Tensor

    def __init__(self, matrix: PackedMatrix, kept: Sequence[tuple[int, int, float]] = ()):
        super().__init__()
        self.matrix = matrix
        self.kept = KeptWeights(matrix, kept) if kept else None
        self._share()

    def _share(self) -> None:
        arrays = {PACKED: self.matrix.groups, SCALE: self.matrix.scales}
        if self.kept is not None:
            arrays |= {KEPT_INDEX: self.kept.index, KEPT_VALUE: self.kept.value}
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Casts and moves of the model leave all where it is read at each use."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._share()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copied layer reads a matrix of its own."""
        kept = () if self.kept is None else self.kept.triples
        made = type(self)(copy.deepcopy(self.matrix, memo), kept).train(self.training)
        memo[id(self)] = made
        return made

    def _save_to_state_dict(self, *_: Any) -> None:
        raise TypeError(
            f"{self.matrix.name:.200} is packed: its weights are not saved with a state. Keep "
            "the folder of `weightguard ternarize`, or the model from which it was packed."
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the buffers."""
        return PARTS if self.kept is None else PARTS + KEPT_PARTS

    def add_kept(self, x: torch.Tensor, y: torch.Tensor, verify: Verify, on_fault: OnFault) -> None:
        """Add the products of the weights in full precision to ``y``, as ``KeptWeights.use``."""
        if self.kept is None:
            return
        weights = self.kept.use(x.shape[:-1].numel(), verify, on_fault)
        if weights is None:
            y.fill_(torch.nan)
            return
        index, value = map(torch.from_numpy, weights)
        rows, columns = index.unbind(1)
        y.index_add_(-1, rows, (x[..., columns].float() * value).to(y.dtype))


class Bias:
    """The bias [N] of a layer in the number format that it was given in, compared at each use."""

    def __init__(self, matrix: PackedMatrix, values: torch.Tensor):
        """Copy ``values``; raises TypeError and ValueError for others than N floats in memory."""
        number_of(values, "bias")
        if values.shape != matrix.shape[:1]:
            raise ValueError(f"bias has shape {tuple(values.shape)} for {matrix.shape[0]} outputs")
        own = values.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
        self._matrix, self._dtype = matrix, own.dtype
        self._live = own.view(torch.uint8).numpy()
        tell = partial(_finding, matrix.name, own.itemsize)
        self._compared = Compared(matrix, "bias", (self._live,), Alarm.BIAS, tell)

    @property
    def tensor(self) -> torch.Tensor:
        """The live memory."""
        return torch.from_numpy(self._live).view(self._dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copied layer reads a bias of its own; raises IntegrityError if it is damaged."""
        values = self._used(0, "always", "raise")
        assert values is not None
        return type(self)(copy.deepcopy(self._matrix, memo), values)

    def add(self, y: torch.Tensor, verify: Verify, on_fault: OnFault) -> None:
        """Add the bias to ``y`` [..., N], or mark ``y`` with NaN, as ``Compared.use``."""
        values = self._used(y.numel() // y.shape[-1], verify, on_fault)
        if values is None:
            y.fill_(torch.nan)
        else:
            y.add_(values)

    def _used(self, tokens: int, verify: Verify, on_fault: OnFault) -> torch.Tensor | None:
        data = self._compared.use(tokens, verify, on_fault)
        return None if data is None else torch.frombuffer(data, dtype=self._dtype)


def _finding(layer: str, itemsize: int, kept: bytes, live: bytes) -> Finding:
    before, after = (np.frombuffer(data, f"V{itemsize}") for data in (kept, live))
    return bias_finding(layer, np.flatnonzero(before != after).tolist())
