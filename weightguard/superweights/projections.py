"""Which tensors are MLP output projections, and which tensors produce their inputs.

An output projection maps an MLP's hidden units back to the residual stream: output channel r
gets ``sum_j W[r, j] * x[j]``, where unit j is computed from row j of the up projection and, in
gated MLPs, row j of the gate. Names are those of Hugging Face, Meta and GGUF checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from weightguard.scan.formats import FORMATS
from weightguard.tensor import TensorView

MAX_NAME_CHARS = 500
"""Longer names are no framework's, and patterns need not be tried on them."""

Side: TypeAlias = Literal["up", "gate"]


@dataclass(frozen=True, slots=True)
class Producer:
    """The rows of a tensor that produce the hidden units: unit j is row ``first_row + j``.

    ``expert_rows`` is the distance between the rows of consecutive experts where the tensor
    stacks them, else 0.
    """

    tensor: TensorView
    first_row: int = 0
    expert_rows: int = 0


@dataclass(frozen=True, slots=True)
class Projection:
    """An MLP output projection with what is known of its place.

    ``tensor`` has shape [outputs, units], [units, outputs] where ``transposed``, or
    [experts, outputs, units]. ``norm`` is the layer norm's weight of shape [hidden] that scales
    the MLP's input, or None.
    """

    tensor: TensorView
    layer: int
    transposed: bool
    up: Producer | None
    gate: Producer | None
    norm: TensorView | None

    @property
    def outputs(self) -> int:
        """The number of residual channels it writes."""
        return self.tensor.shape[-1 if self.transposed else -2]

    @property
    def units(self) -> int:
        """The number of hidden units it reads."""
        return self.tensor.shape[-2 if self.transposed else -1]


@dataclass(frozen=True, slots=True)
class _Family:
    """How one family of architectures calls an MLP's tensors.

    Of each of ``up``, ``gate``, ``fused`` (gate rows before up rows) and ``norms`` the first
    that exists counts; they are names beside the projection's own, norms beside the layer's.
    """

    output: str
    up: tuple[str, ...] = ()
    gate: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    transposed: bool = False


_HUGGING_FACE_NORMS = (
    "pre_feedforward_layernorm.weight", "post_attention_layernorm.weight", "ffn_norm.weight",
    "mlp_norm.weight", "ln_2.weight", "final_layer_norm.weight", "post_attention_norm.weight",
)  # fmt: skip

# in the order of trial: the first family whose output pattern fits decides
_FAMILIES = (
    _Family("mlp.c_proj.weight", up=("mlp.c_fc.weight",), norms=("ln_2.weight",), transposed=True),
    _Family("down_proj.weight", ("up_proj.weight", "w3.weight"), ("gate_proj.weight",),
            ("gate_up_proj.weight",), _HUGGING_FACE_NORMS),
    _Family("down_proj", (), (), ("gate_up_proj",), _HUGGING_FACE_NORMS),
    _Family("dense_4h_to_h.weight", ("dense_h_to_4h.weight",), norms=_HUGGING_FACE_NORMS),
    _Family("c_proj.weight", ("c_fc.weight", "w1.weight"), ("w2.weight",), (),
            _HUGGING_FACE_NORMS),
    _Family("fc2.weight", ("fc1.weight",), norms=_HUGGING_FACE_NORMS),
    _Family("fc_out.weight", ("fc_in.weight",), norms=_HUGGING_FACE_NORMS),
    _Family("ff_out.weight"),
    _Family("w2.weight", ("w3.weight",), ("w1.weight",), (), _HUGGING_FACE_NORMS),
    _Family("ffn_down.weight", ("ffn_up.weight",), ("ffn_gate.weight",), (), ("ffn_norm.weight",)),
    _Family("ffn_down_exps.weight", ("ffn_up_exps.weight",), ("ffn_gate_exps.weight",), (),
            ("ffn_norm.weight",)),
    _Family("ffn_down_shexp.weight", ("ffn_up_shexp.weight",), ("ffn_gate_shexp.weight",), (),
            ("ffn_norm.weight",)),
)  # fmt: skip

_LAYER = re.compile(r"(.*?(?:^|\.)(?:layers|layer|h|blk|block|blocks)\.(\d{1,6})\.)(.+)")

_ATTENTION = re.compile(r"attn|attention")


def find_projections(tensors: Sequence[TensorView]) -> tuple[Projection, ...]:
    """Return the output projections among ``tensors``, by layer and then by name."""
    by_name = {name: t for t in tensors for name in (t.name, *t.aliases)}
    found = [p for t in tensors if (p := _projection(t, by_name)) is not None]
    return tuple(sorted(found, key=lambda p: (p.layer, p.tensor.name)))


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor's name puts it in, or None."""
    match = _LAYER.fullmatch(name[:MAX_NAME_CHARS])
    return int(match[2]) if match else None


def is_matrix(tensor: TensorView) -> bool:
    """Return whether the tensor is a matrix, or a stack of some, of floats, a row an output."""
    shape, dtype = tensor.shape, tensor.dtype
    return (
        len(shape) in (2, 3)
        and min(shape) > 1
        and tensor.layout.row_elements == shape[-1]
        and dtype.has_scalar_elements
        and FORMATS[dtype.scalar].is_float
    )


def names_projection(name: str) -> bool:
    """Return whether a tensor of this name is an MLP output projection, whatever its shape."""
    return _family(name) is not None


def _family(name: str) -> tuple[re.Match[str], _Family] | None:
    match = _LAYER.fullmatch(name) if len(name) <= MAX_NAME_CHARS else None
    if match is None or _ATTENTION.search(match[3]):
        return None
    for family in _FAMILIES:
        if match[3] == family.output or match[3].endswith("." + family.output):
            return match, family
    return None


def _projection(tensor: TensorView, by_name: Mapping[str, TensorView]) -> Projection | None:
    found = _family(tensor.name)
    if found is None or not is_matrix(tensor):
        return None
    match, family = found
    prefix = match[1] + match[3].removesuffix(family.output)
    transposed = family.transposed and _is_transposed(tensor, prefix, family, by_name)
    bare = Projection(tensor, int(match[2]), transposed, None, None, None)
    return _with_producers(bare, family, prefix, match[1], by_name)


def _is_transposed(
    tensor: TensorView, prefix: str, family: _Family, by_name: Mapping[str, TensorView]
) -> bool:
    """Return whether weights are stored [inputs, outputs], as GPT-2 does; its MLP widens."""
    up = by_name.get(prefix + family.up[0].rpartition("mlp.")[2])
    return tensor.shape[0] > tensor.shape[1] and (up is None or up.shape == tensor.shape[::-1])


def _with_producers(
    projection: Projection,
    family: _Family,
    prefix: str,
    layer_prefix: str,
    by_name: Mapping[str, TensorView],
) -> Projection:
    tensor, units = projection.tensor, projection.units
    stacked = tensor.shape[0] if len(tensor.shape) == 3 else 0

    def beside(suffixes: Sequence[str], rows: int) -> TensorView | None:
        for suffix in suffixes:
            candidate = by_name.get(prefix + suffix)
            if candidate is not None and _produces(candidate, rows, projection.outputs, stacked):
                return candidate
        return None

    if projection.transposed:
        return projection
    fused = beside(family.fused, 2 * units)
    gate, up = _producer(fused, 0, 2 * units, stacked), _producer(fused, units, 2 * units, stacked)
    if fused is None:
        gate = _producer(beside(family.gate, units), 0, units, stacked)
        up = _producer(beside(family.up, units), 0, units, stacked)
    norm = _first_norm(layer_prefix, family.norms, projection.outputs, by_name)
    return Projection(tensor, projection.layer, False, up, gate, norm)


def _producer(
    tensor: TensorView | None, first_row: int, expert_rows: int, stacked: int
) -> Producer | None:
    return None if tensor is None else Producer(tensor, first_row, expert_rows if stacked else 0)


def _produces(tensor: TensorView, rows: int, hidden: int, stacked: int) -> bool:
    expected = (stacked, rows, hidden) if stacked else (rows, hidden)
    return tensor.shape == expected and is_matrix(tensor)


def _first_norm(
    prefix: str, suffixes: Sequence[str], hidden: int, by_name: Mapping[str, TensorView]
) -> TensorView | None:
    for suffix in suffixes:
        norm = by_name.get(prefix + suffix)
        if norm is not None and norm.shape == (hidden,) and FORMATS[norm.dtype.scalar].is_float:
            return norm
    return None
