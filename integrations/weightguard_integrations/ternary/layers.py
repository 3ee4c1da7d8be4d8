"""Checked products in torch models: ``TernaryLinear`` in place of linear layers.

Needs the extra ``torch``; the package itself does not import this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from weightguard import WeightguardError
from weightguard.guard import Hearing
from weightguard_integrations.ternary.folder import read_others, read_packed
from weightguard_integrations.ternary.imports import absmean, as_float32
from weightguard_integrations.ternary.live import PARTS
from weightguard_integrations.ternary.matrix import OnFault, PackedMatrix, Verify
from weightguard_integrations.ternary.packed import PackedInt8, PackedTernary


class PackedWeight(nn.Module):
    """The packed matrix of a layer and its weights in full precision, as buffers.

    ``packed`` and ``scale`` share the kernel's memory, whatever is done to the module: who guards
    live tensors guards what runs. ``kept_index`` (int64 [n, 2]: row, column) and ``kept_value``
    (float32 [n]) are there only if weights are kept. None is saved with a state: a packed layer
    is made anew from attested weights.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    kept_index: torch.Tensor
    kept_value: torch.Tensor

    def __init__(self, matrix: PackedMatrix, kept: Sequence[tuple[int, int, float]] = ()):
        super().__init__()
        self.matrix, self.kept = matrix, len(kept)
        self._share()
        if kept:
            index = torch.tensor([place for *place, _ in kept])
            values = torch.tensor([value for *_, value in kept], dtype=torch.float32)
            self.register_buffer("kept_index", index, persistent=False)
            self.register_buffer("kept_value", values, persistent=False)

    def _share(self) -> None:
        matrix = self.matrix
        for name, array in (("packed", matrix.groups), ("scale", matrix.scales)):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Casts and moves of the model leave the matrix where the kernel reads it."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._share()
        return self

    def witness(self, hearing: Hearing) -> Callable[[], None]:
        """See ``weightguard.guard.Witness``: what products with this matrix found."""
        return self.matrix.witness(partial(hearing, PARTS))

    def add_kept(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the products of the weights in full precision to ``y``."""
        rows, columns = self.kept_index.unbind(1)
        y.index_add_(-1, rows, (x[..., columns].float() * self.kept_value).to(y.dtype))


class TernaryLinear(nn.Module):
    """A linear layer [..., K] -> [..., N] on a packed matrix; inference only, no gradients.

    ``kept`` are weights in full precision: (row, column, value); the packed weight there is 0.
    """

    def __init__(
        self,
        packed: PackedMatrix,
        *,
        bias: torch.Tensor | None = None,
        norm: nn.Module | None = None,
        kept: Sequence[tuple[int, int, float]] = (),
        verify: Verify = "always",
        on_fault: OnFault = "raise",
    ):
        super().__init__()
        self.weight = PackedWeight(packed, kept)
        self.verify, self.on_fault = verify, on_fault
        self.out_features, self.in_features = packed.shape
        self.norm = norm
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, name: str = "weight", keep: Iterable[tuple[int, int]] = (),
        **options: Any,
    ) -> Self:  # fmt: skip
        """Quantise a float layer by its mean magnitude; the weights at ``keep`` stay as they are.

        ``keep`` holds (row, column). Raises ValueError for weights that are not finite or not
        there.
        """
        weight = as_float32(linear.weight)
        codes, scale = absmean(weight)
        kept = []
        for row, column in keep:
            if not (0 <= row < weight.shape[0] and 0 <= column < weight.shape[1]):
                raise ValueError(f"there is no weight [{row}, {column}] in {weight.shape}")
            codes[row, column] = 0
            kept.append((row, column, float(weight[row, column])))
        packed = PackedTernary.from_int8(codes, scale, name=name)
        return cls(packed, bias=linear.bias, kept=kept, **options)

    @property
    def packed(self) -> PackedMatrix:
        """The packed matrix."""
        return self.weight.matrix

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product, in x's dtype; raises IntegrityError as ``PackedMatrix.linear``."""
        if self.norm is not None:
            x = self.norm(x)
        x = x.detach()
        y: torch.Tensor = self.packed.linear(x, verify=self.verify, on_fault=self.on_fault)
        if self.weight.kept:
            self.weight.add_kept(x, y)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """What print(model) shows of this layer."""
        return (
            f"{self.in_features}, {self.out_features}, {self.packed.kind}, verify={self.verify}, "
            f"kept={self.weight.kept}"
        )


def load_ternary(
    folder: str | os.PathLike[str], *, verify: Verify = "always", on_fault: OnFault = "raise"
) -> nn.Module:
    """Return the causal language model that ``ternarize`` wrote, with checked layers, in float32.

    Every weight is compared with the folder's manifest as it is read; nothing is downloaded and no
    code of the folder runs. Raises CheckpointError, ManifestError and WeightguardError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    for packed, kept in read_packed(folder):
        name, place = packed.name, packed.name.removesuffix(".weight")
        linear = model.get_submodule(place)
        if not isinstance(linear, nn.Linear) or packed.shape != tuple(linear.weight.shape):
            raise WeightguardError(f"the model of config.json has no linear layer {name!r:.200}")
        layer = TernaryLinear(packed, kept=kept, verify=verify, on_fault=on_fault)
        if linear.bias is not None:
            layer.bias = nn.Parameter(torch.empty(packed.shape[0], device="meta"), False)
        model.set_submodule(place, layer)
    _fill(model, dict(read_others(folder)))
    loaded: nn.Module = model.eval()
    return loaded


def _fill(model: Any, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    state = {name: torch.from_numpy(values) for name, values in tensors.items()}
    extra = model.load_state_dict(state, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    empty = [name for name, values in model.named_parameters() if values.is_meta]
    if empty or extra:
        raise WeightguardError(
            f"the folder does not hold the model of its config.json: {len(empty)} weights are "
            f"missing and {len(extra)} are too many, the first {(empty or extra)[0]!r:.200}"
        )
    _recompute_buffers(model)


def _recompute_buffers(model: nn.Module) -> None:
    """Rotary frequencies are computed, not stored: make those that were left on "meta"."""
    for module in list(model.modules()):
        if any(b.is_meta for b in module.buffers(recurse=False)):
            for name, child in type(module)(config=module.config).named_buffers(recurse=False):
                module.register_buffer(name, child, persistent=False)


def replace_bitlinear(
    model: nn.Module,
    *,
    int8: Iterable[str] = (),
    verify: Verify = "always",
    on_fault: OnFault = "raise",
) -> list[str]:
    """Put ``TernaryLinear`` in place of transformers' BitLinear and AutoBitLinear, in place.

    The linear layers named in ``int8`` (``lm_head``, say) become int8 under the same check.
    Returns the names of what was replaced. Raises ValueError for weights that are not ternary,
    and for names of ``int8`` that are no linear layer.
    """
    options: dict[str, Any] = {"verify": verify, "on_fault": on_fault}
    wanted = set(int8)
    replaced = []
    for name, module in list(model.named_modules()):
        make = _MAKERS.get(type(module).__name__)
        if name in wanted:
            if not isinstance(module, nn.Linear):
                raise ValueError(f"{name} is {type(module).__name__}, not a linear layer")
            make = _int8
            wanted.discard(name)
        if make is not None:
            model.set_submodule(name, make(module, name, options))
            replaced.append(name)
    if wanted:
        raise ValueError(f"the model has no layer {sorted(wanted)[0]!r:.100}")
    return replaced


def _int8(module: Any, name: str, options: dict[str, Any]) -> TernaryLinear:
    packed = PackedInt8.from_float(module.weight, name=name)
    return TernaryLinear(packed, bias=module.bias, **options)


def _bit_linear(module: Any, name: str, options: dict[str, Any]) -> TernaryLinear:
    packed = PackedTernary.from_hugging_face(
        module.weight, module.weight_scale, scale_divides=True, name=name
    )
    return TernaryLinear(packed, bias=module.bias, norm=module.rms_norm, **options)


def _auto_bit_linear(module: Any, name: str, options: dict[str, Any]) -> TernaryLinear:
    if module.online_quant:
        packed = PackedTernary.from_master(module.weight, name=name)
    else:
        weight = as_float32(module.weight)
        codes = weight.astype(np.int8)
        if (codes != weight).any():
            raise ValueError(f"the weights of {name!r:.100} are not -1, 0 and 1")
        scale = module.weight_scale.float().numpy()
        packed = PackedTernary.from_int8(codes, scale, name=name)
    return TernaryLinear(packed, bias=module.bias, norm=module.rms_norm, **options)


_MAKERS: dict[str, Callable[[Any, str, dict[str, Any]], TernaryLinear]] = {
    "BitLinear": _bit_linear,
    "AutoBitLinear": _auto_bit_linear,
}
"""By name, as transformers' module is imported only by models that use it."""
