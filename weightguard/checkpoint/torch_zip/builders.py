"""The globals that a PyTorch pickle may name, and the inert descriptors that stand for them.

Nothing here resolves a name to an object: each allowed name either stays a ``Symbol`` or maps to
a function of this module that checks its arguments and returns a descriptor. Source: the reduce
functions of ``torch.Tensor`` and ``torch._utils``, PyTorch 1.6 to 2.13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from weightguard.tensor import MAX_DIMENSIONS

MAX_EXTENT = 1 << 62
MAX_METADATA_ENTRIES = 8

_STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16",
    "Long": "I64", "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8", "Bool": "BOOL",
    "ComplexFloat": "C64", "ComplexDouble": "C128",
    "QInt8": "I8", "QUInt8": "U8", "QInt32": "I32",
    "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4", "Untyped": "U8",
}  # fmt: skip

STORAGE_DTYPES: dict[str, str] = {
    **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
    **{f"torch.cuda.{name}Storage": dtype for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": "U8",
    "torch.storage._UntypedStorage": "U8",
}
"""The dtype of each storage class; one that weightguard lacks has PyTorch's name."""

TENSOR_DTYPES: dict[str, str] = {
    f"torch.{name}": dtype
    for name, dtype in {
        "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
        "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "bool": "BOOL",
        "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
        "complex64": "C64", "complex128": "C128", "complex32": "complex32",
        "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
        "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
        "float4_e2m1fn_x2": "F4",
        "qint8": "I8", "quint8": "U8", "qint32": "I32",
        "quint4x2": "quint4x2", "quint2x4": "quint2x4",
        "bits1x8": "bits1x8", "bits2x4": "bits2x4", "bits4x2": "bits4x2",
        "bits8": "bits8", "bits16": "bits16",
    }.items()
}  # fmt: skip
"""The dtype of each of PyTorch's; one that weightguard lacks keeps PyTorch's name."""

_QSCHEMES = {
    f"torch.{name}"
    for name in (
        "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine",
        "per_channel_symmetric", "per_channel_affine_float_qparams",
    )
}  # fmt: skip
_TENSOR_TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}


@dataclass(frozen=True, slots=True)
class Symbol:
    """An allowed global by its dotted name."""

    name: str


_PLAIN = (str, bytes, int, float, Symbol)


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage record: its key in the archive, the dtype's name, and its elements."""

    key: str
    dtype: str
    elements: int


@dataclass(slots=True, eq=False)
class Items:
    """A dictionary as the pickle wrote it: pairs in order, repeated keys and all.

    ``attributes`` is the state set on an OrderedDict, such as a state dict's ``_metadata``.
    """

    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    attributes: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage: offset and strides count elements of ``dtype``.

    ``quantiser`` is what gives the integers of a quantised tensor their values; its ``dtype`` is
    that of the integers. ``attributes`` may hold further tensors.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    quantiser: Quantiser | None = None
    attributes: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Quantiser:
    """Scale and zero point: numbers for the whole tensor, or a tensor each along ``axis``.

    PyTorch's schemes differ in nothing else that the values depend on: symmetric ones have zero
    points of their own, and those with floating parameters have them as floats.
    """

    scale: float | Tensor
    zero_point: int | Tensor
    axis: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Unsupported:
    """A tensor of a ``kind`` whose values are not simply the bytes of one storage."""

    kind: str
    remedy: str | None = None
    attributes: Any = None


_SAVE_RESOLVED = "Save tensor.resolve_{}() instead of the tensor."
_LAZY = {
    "conj": ("a view of other numbers' conjugates", _SAVE_RESOLVED.format("conj")),
    "neg": ("a view of other numbers' negatives", _SAVE_RESOLVED.format("neg")),
}
_META = ("a meta tensor, a shape without data", "Save the model after its weights are loaded.")
_SAVE_PARTS = "Save tensor.unbind() instead of the tensor."
_SAVE_CPU = "Save tensor.cpu() instead of the tensor."
_SAVE_DENSE = "Save tensor.to_dense() instead of the tensor."

Builder: TypeAlias = Callable[[tuple[Any, ...]], Any]


class ArgumentError(ValueError):
    """An allowed global is called with arguments that PyTorch never writes."""


def storage(identity: Any) -> Storage:
    """Return the storage that a persistent id names: ("storage", class, key, device, elements).

    Raises ArgumentError for any other id.
    """
    if not (isinstance(identity, tuple) and len(identity) == 5):
        raise ArgumentError("a persistent id is not that of a storage")
    word, class_, key, _, elements = identity
    known = isinstance(class_, Symbol) and class_.name in STORAGE_DTYPES
    if word != "storage" or not known or not isinstance(key, str) or not _is_size(elements):
        raise ArgumentError("a persistent id is not that of a storage")
    return Storage(key, STORAGE_DTYPES[class_.name], elements)


def _is_size(value: Any) -> bool:
    # bool is a subclass of int, and True is no size
    return type(value) is int and 0 <= value < MAX_EXTENT


def _is_int64(value: Any) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _is_sizes(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_DIMENSIONS
        and all(_is_size(n) for n in value)
    )


def _view(args: tuple[Any, ...]) -> Tensor:
    source, offset, shape, strides = args[:4]
    if not isinstance(source, Storage):
        raise ArgumentError("a tensor is built on something else than a storage")
    if not (_is_size(offset) and _is_sizes(shape) and _is_sizes(strides)):
        raise ArgumentError("a tensor's offset, shape or strides are no sizes")
    if len(shape) != len(strides):
        raise ArgumentError("a tensor's shape and strides differ in length")
    return Tensor(source, source.dtype, offset, shape, strides)


def _rebuild_tensor(args: tuple[Any, ...]) -> Tensor:
    _expect(args, 4)
    return _view(args)


def _rebuild_tensor_v2(args: tuple[Any, ...]) -> Tensor | Unsupported:
    _expect(args, 6, 7)
    return _unless_lazy(_view(args), args[6:])


def _rebuild_tensor_v3(args: tuple[Any, ...]) -> Tensor | Unsupported:
    _expect(args, 7, 8)
    dtype = args[6]
    if not (isinstance(dtype, Symbol) and dtype.name in TENSOR_DTYPES):
        raise ArgumentError("a tensor's dtype is no dtype")
    return _unless_lazy(replace(_view(args), dtype=TENSOR_DTYPES[dtype.name]), args[7:])


def _unless_lazy(tensor: Tensor, metadata: tuple[Any, ...]) -> Tensor | Unsupported:
    """Return the tensor, unless its values are the conjugate or negative of its bytes."""
    if not metadata or metadata[0] is None:
        return tensor
    if not isinstance(metadata[0], Items) or len(metadata[0].pairs) > MAX_METADATA_ENTRIES:
        raise ArgumentError("a tensor's metadata is no small dictionary")
    for key, value in metadata[0].pairs:
        if not isinstance(key, str) or not isinstance(value, bool):
            raise ArgumentError("a tensor's metadata is not of flags")
        if value:
            return Unsupported(*_LAZY.get(key, ("a view with a flag that PyTorch never sets",)))
    return tensor


def _rebuild_qtensor(args: tuple[Any, ...]) -> Tensor:
    _expect(args, 7)
    quantiser = args[4]
    if not (isinstance(quantiser, tuple) and 3 <= len(quantiser) <= 4):
        raise ArgumentError("a quantised tensor has no quantiser")
    scheme, scale, zero_point, *axis = quantiser
    if not (isinstance(scheme, Symbol) and scheme.name in _QSCHEMES):
        raise ArgumentError("a quantised tensor has no scheme")
    if isinstance(scale, Tensor) and isinstance(zero_point, Tensor):
        if len(axis) != 1 or not _is_size(axis[0]):
            raise ArgumentError("a tensor quantised along an axis has no axis")
        return replace(_view(args), quantiser=Quantiser(scale, zero_point, axis[0]))
    if axis or not isinstance(scale, float) or not _is_int64(zero_point):
        raise ArgumentError("a quantised tensor's scale or zero point is no number")
    return replace(_view(args), quantiser=Quantiser(scale, zero_point))


def _with_attributes(tensor: Any, state: Any) -> Any:
    if not isinstance(tensor, Tensor | Unsupported):
        raise ArgumentError("a parameter is built on something else than a tensor")
    if state is None:
        return tensor
    both = state if tensor.attributes is None else [tensor.attributes, state]
    return replace(tensor, attributes=both)


def _rebuild_parameter(args: tuple[Any, ...]) -> Any:
    _expect(args, 3)
    return _with_attributes(args[0], None)


def _rebuild_parameter_with_state(args: tuple[Any, ...]) -> Any:
    _expect(args, 4)
    return _with_attributes(args[0], args[3])


def _rebuild_from_type(args: tuple[Any, ...]) -> Any:
    _expect(args, 4)
    function, type_, arguments, state = args
    builder = _TENSOR_BUILDERS.get(function.name) if isinstance(function, Symbol) else None
    typed = isinstance(type_, Symbol) and type_.name in _TENSOR_TYPES
    if builder is None or not typed or not isinstance(arguments, tuple):
        raise ArgumentError("a tensor is rebuilt as something else")
    return _with_attributes(builder(arguments), state)


def _unsupported(kind: str, remedy: str | None = None) -> Builder:
    return lambda _: Unsupported(kind, remedy)


def _dictionary(args: tuple[Any, ...]) -> Items:
    """A new dictionary, or the very one given: a copy would let few bytes fill the memory."""
    _expect(args, 0, 1)
    if args and not isinstance(args[0], Items):
        raise ArgumentError("a dictionary is built of something else than a dictionary")
    return args[0] if args else Items()


def _set(args: tuple[Any, ...]) -> Any:
    _expect(args, 0, 1)
    if args and not isinstance(args[0], list | tuple):
        raise ArgumentError("a set is built of something else than a list")
    return args[0] if args else []


def _size(args: tuple[Any, ...]) -> tuple[Any, ...]:
    _expect(args, 1)
    if not _is_sizes(args[0]):
        raise ArgumentError("a torch.Size is built of something else than sizes")
    return tuple(args[0])


def _plain(name: str) -> Builder:
    """Return a builder of a value that cannot hold a tensor: numbers and words in, symbol out."""

    def build(args: tuple[Any, ...]) -> Symbol:
        if len(args) > 2 or not all(isinstance(item, _PLAIN) for item in args):
            raise ArgumentError(f"{name} is built of something else than numbers and words")
        return Symbol(name)

    return build


def _expect(args: tuple[Any, ...], *counts: int) -> None:
    if len(args) not in counts:
        raise ArgumentError(f"a global is called with {len(args)} arguments")


_TENSOR_BUILDERS: dict[str, Builder] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_qtensor": _rebuild_qtensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter_with_state,
    "torch._utils._rebuild_sparse_tensor": _unsupported("a sparse tensor", _SAVE_DENSE),
    "torch._utils._rebuild_nested_tensor": _unsupported("a nested tensor", _SAVE_PARTS),
    "torch._utils._rebuild_meta_tensor_no_storage": _unsupported(*_META),
    "torch._utils._rebuild_wrapper_subclass": _unsupported("a tensor of a class that wraps others"),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _unsupported(
        "a tensor of another device", _SAVE_CPU
    ),
}

BUILDERS: dict[str, Builder] = {
    **_TENSOR_BUILDERS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.complex": _plain("builtins.complex"),
    "builtins.bytearray": _plain("builtins.bytearray"),
    "_codecs.encode": _plain("_codecs.encode"),
    "torch.Size": _size,
    "torch.device": _plain("torch.device"),
    "torch.serialization._get_layout": _plain("torch.serialization._get_layout"),
}
"""What an allowed global does when it is called; everything else stays a symbol or is refused."""

ALLOWED = frozenset(BUILDERS) | frozenset(STORAGE_DTYPES) | frozenset(TENSOR_DTYPES)
ALLOWED |= _QSCHEMES | _TENSOR_TYPES
