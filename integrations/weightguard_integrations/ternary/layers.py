"""Checked products in torch models: ``TernaryLinear`` in place of linear layers.

Needs the extra ``torch``; the package itself does not import this module.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from weightguard import WeightguardError
from weightguard.guard import Hearing
from weightguard_integrations.ternary.buffers import Bias, PackedWeight
from weightguard_integrations.ternary.folder import WEIGHTS, read_others, read_packed
from weightguard_integrations.ternary.imports import absmean, as_float32
from weightguard_integrations.ternary.matrix import OnFault, PackedMatrix, Verify, require_words
from weightguard_integrations.ternary.packed import PackedInt8, PackedTernary


class TernaryLinear(nn.Module):
    """A linear layer [..., K] -> [..., N] on a packed matrix; inference only, no gradients.

    ``kept`` are weights in full precision: (row, column, value); the packed weight there is 0.
    ``bias`` is copied; the buffer of that name shares the memory that is read. ``packed`` is the
    packed matrix.
    """

    bias: torch.Tensor | None

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
        if not isinstance(packed, PackedMatrix):
            raise TypeError(f"packed is a {type(packed).__name__}, not a packed matrix")
        require_words(verify, on_fault)
        self.packed, self.weight = packed, PackedWeight(packed, kept)
        self.verify, self.on_fault = verify, on_fault
        self.out_features, self.in_features = packed.shape
        self.norm, self._keeps = norm, bool(kept)
        self._bias = None if bias is None else Bias(packed, bias)
        self._share()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute other than ``bias``, where it would not be what is read."""
        if name == "bias":
            raise AttributeError("the bias of a packed layer is fixed; make another layer with it")
        super().__setattr__(name, value)

    def _share(self) -> None:
        values = None if self._bias is None else self._bias.tensor
        self.register_buffer("bias", values, persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Casts and moves of the model leave the bias where it is read at each use."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._share()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copied layer is of its own memory."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__dict__, memo))  # type: ignore[no-untyped-call]
        made._share()
        return made

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product, in x's dtype; raises IntegrityError as ``PackedMatrix.linear``.

        Raises TypeError while torch.jit traces, which would keep the outputs as constants.
        """
        # a disabled function is slow to call, even where nothing is compiled
        return self._uncompiled(x) if torch.compiler.is_compiling() else self._checked(x)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _uncompiled(self, x: torch.Tensor) -> torch.Tensor:
        return self._checked(x)

    def _checked(self, x: torch.Tensor) -> torch.Tensor:
        if torch._C._get_tracing_state() is not None:
            raise TypeError("a packed layer cannot be traced: its kernel is no torch operation")
        if self.norm is not None:
            x = self.norm(x)
        if x.requires_grad:
            x = x.detach()
        y: torch.Tensor = self.packed.linear(x, verify=self.verify, on_fault=self.on_fault)
        if self._keeps:
            self.weight.add_kept(x, y, self.verify, self.on_fault)
        if self._bias is not None:
            self._bias.add(y, self.verify, self.on_fault)
        return y

    def witness(self, hearing: Hearing) -> Callable[[], None]:
        """See ``weightguard.guard.Witness``: what this layer's products found."""
        bias = () if self._bias is None else ("bias",)
        parts = (*(f"weight.{part}" for part in self.weight.parts), *bias)
        return self.packed.witness(partial(hearing, parts))

    def extra_repr(self) -> str:
        """What print(model) shows of this layer."""
        return (
            f"{self.in_features}, {self.out_features}, {self.packed.kind}, verify={self.verify}, "
            f"kept={len(self.weight.kept or ())}, bias={self.bias is not None}"
        )


def load_ternary(
    folder: str | os.PathLike[str], *, verify: Verify = "always", on_fault: OnFault = "raise"
) -> nn.Module:
    """Return the causal language model that ``ternarize`` wrote, with checked layers, in float32.

    Every weight is compared with the folder's manifest as it is read; nothing is downloaded and no
    code of the folder runs. Raises CheckpointError, ManifestError and WeightguardError.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (Path(folder) / WEIGHTS).is_file():
        raise WeightguardError(
            f"{os.fspath(folder)!r:.200} is no folder of `weightguard ternarize`"
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    others = dict(read_others(folder))
    for packed, kept in read_packed(folder):
        name, place = packed.name, packed.name.removesuffix(".weight")
        linear = model.get_submodule(place)
        if not isinstance(linear, nn.Linear) or packed.shape != tuple(linear.weight.shape):
            raise WeightguardError(f"the model of config.json has no linear layer {name!r:.200}")
        if linear.weight is getattr(model.get_input_embeddings(), "weight", None):
            raise WeightguardError(
                f"{name!r:.200} is tied to the embedding table, which is looked up: pack other "
                "layers (`weightguard ternarize --layers`)"
            )
        bias = None if linear.bias is None else _bias(f"{place}.bias", packed.shape[0], others)
        layer = TernaryLinear(packed, bias=bias, kept=kept, verify=verify, on_fault=on_fault)
        model.set_submodule(place, layer)
    _fill(model, others)
    loaded: nn.Module = model.eval()
    return loaded


def _bias(name: str, rows: int, others: dict[str, np.ndarray[Any, Any]]) -> torch.Tensor:
    """Take a packed layer's bias out of ``others``."""
    values = others.pop(name, None)
    if values is None or values.shape != (rows,):
        raise WeightguardError(f"the folder does not hold the {rows} values of {name!r:.200}")
    return torch.from_numpy(values)


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
    and for names of ``int8`` that are no linear layer; then nothing was replaced.
    """
    options: dict[str, Any] = {"verify": verify, "on_fault": on_fault}
    wanted = set(int8)
    made = {}
    for name, module in list(model.named_modules()):
        make = _MAKERS.get(type(module).__name__)
        if name in wanted:
            if not isinstance(module, nn.Linear):
                raise ValueError(f"{name} is {type(module).__name__}, not a linear layer")
            make = _int8
            wanted.discard(name)
        if make is not None:
            made[name] = make(module, name, options)
    if wanted:
        raise ValueError(f"the model has no layer {sorted(wanted)[0]!r:.100}")
    for name, layer in made.items():
        model.set_submodule(name, layer)
    return list(made)


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
