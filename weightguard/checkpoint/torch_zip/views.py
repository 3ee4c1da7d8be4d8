"""From the inert descriptors of a PyTorch pickle to tensors: names, aliases, extents, sources."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weightguard.checkpoint.files import CheckpointFile, FileRange
from weightguard.checkpoint.torch_zip.builders import Items, Quantiser, Storage, Tensor, Unsupported
from weightguard.checkpoint.torch_zip.strided import SlabCache, StridedRange
from weightguard.checkpoint.torch_zip.zip_directory import Record
from weightguard.errors import CheckpointError, malformed
from weightguard.finding import Finding, finding
from weightguard.tensor import DTYPES, ByteSource, DType, TensorView

MAX_DEPTH = 64
MAX_TENSORS = 1_000_000
MAX_VISITS = 1_500_000
"""Values looked at; a pickle can recall one container under many others."""
MAX_LEFT_OUT = 10_000
MAX_PATH_CHARACTERS = 256 << 20
"""Characters of all paths together: a long key inside a nest of recalled dictionaries."""
SINGLE_NAME = "tensor"
"""The name of a tensor that was saved by itself, in no container."""
MAX_EXPANSION = 16
EXPANSION_SLACK = 1 << 20

# what a storage's count is in units of, where the tensor dtype is none of ours
_FOREIGN_BYTES = {"quint4x2": 1, "quint2x4": 1, "complex32": 4, "bits16": 2}


_F64, _I64 = struct.Struct("<d"), struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Constant:
    """A number of the pickle as a tensor, and the ByteSource of its bytes."""

    dtype: str
    data: bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        buffer[:] = self.data[offset : offset + len(buffer)]


@dataclass(frozen=True, slots=True)
class Place:
    """The pickle's place in its file, where findings about its contents point."""

    file: CheckpointFile
    offset: int

    def error(self, code: str, words: str, name: str | None = None) -> CheckpointError:
        """Return a fatal finding."""
        return malformed(code, words, file=self.file.name, offset=self.offset, tensor=name)


@dataclass(slots=True)
class _Walk:
    """The tensors met so far by path, and what walking to them has cost."""

    place: Place
    found: dict[str, Tensor | Constant] = field(default_factory=dict)
    quantised: list[tuple[str, Quantiser]] = field(default_factory=list)
    unread: int = 0
    findings: list[Finding] = field(default_factory=list)
    visits: int = 0
    characters: int = 0

    def visit(self, value: Any, path: str, depth: int) -> None:
        self._charge(path, depth)
        if isinstance(value, Tensor):
            self._add(path or SINGLE_NAME, value)
        elif isinstance(value, Storage):
            self._add(path or SINGLE_NAME, Tensor(value, value.dtype, 0, (value.elements,), (1,)))
        elif isinstance(value, Unsupported):
            words = f"{path or SINGLE_NAME!r:.100} is {value.kind}; it was not read"
            self.note("WG119", words, path or SINGLE_NAME, value.remedy)
            self.unread += 1
        if isinstance(value, Tensor | Unsupported | Items) and value.attributes is not None:
            self.visit(value.attributes, path, depth + 1)
        for key, item in _children(value):
            self._visit_child(key, item, path, depth)

    def _charge(self, path: str, depth: int) -> None:
        self.visits += 1
        self.characters += len(path)
        if depth > MAX_DEPTH:
            raise self.place.error("WG116", f"containers are nested over {MAX_DEPTH} deep")
        if self.visits > MAX_VISITS:
            raise self.place.error("WG116", f"containers hold over {MAX_VISITS} values")
        if self.characters > MAX_PATH_CHARACTERS:
            raise self.place.error("WG116", "the names of all tensors together are too long")

    def _visit_child(self, key: Any, item: Any, path: str, depth: int) -> None:
        if not isinstance(item, Tensor | Storage | Unsupported | Items | list | tuple):
            self._charge("", 0)
        elif isinstance(key, str | int | float):
            self.visit(item, f"{path}.{key}" if path else str(key), depth + 1)
        elif not isinstance(item, list | tuple) or item:
            words = f"a key below {path!r:.80} is neither text nor number; what it holds is"
            self.note("WG119", f"{words} not read", path)

    def add_quantisers(self) -> None:
        """Add what quantised tensors rest on, once all names are known."""
        for path, quantiser in self.quantised:
            for word, value in _parameters(quantiser):
                self._add(self._free_name(f"{path}.{word}"), value)

    def _free_name(self, name: str) -> str:
        """Return ``name``, or with a number behind it where the pickle has another tensor of it."""
        number, free = 1, name
        while free in self.found:
            number += 1
            free = f"{name}~{number}"
        return free

    def note(self, code: str, words: str, name: str, remedy: str | None = None) -> None:
        """Add a finding that leaves the rest readable."""
        if len(self.findings) >= MAX_LEFT_OUT:
            raise self.place.error("WG116", f"over {MAX_LEFT_OUT} values cannot be read")
        place = self.place
        self.findings.append(
            finding(
                code, words, file=place.file.name, offset=place.offset, tensor=name, remedy=remedy
            )
        )

    def _add(self, path: str, tensor: Tensor | Constant) -> None:
        if path in self.found:
            self.note("WG104", f"the pickle holds {path!r:.100} twice", path)
            return
        if len(self.found) >= MAX_TENSORS:
            raise self.place.error("WG116", f"the pickle holds over {MAX_TENSORS} tensors")
        self.found[path] = tensor
        if isinstance(tensor, Tensor) and tensor.quantiser is not None:
            self.quantised.append((path, tensor.quantiser))


def _parameters(quantiser: Quantiser) -> Iterator[tuple[str, Tensor | Constant]]:
    """Yield what a quantised tensor's integers mean nothing without, as tensors.

    The same integers under another scale are other weights, so these are fingerprinted too.
    """
    scale, zero_point, axis = quantiser.scale, quantiser.zero_point, quantiser.axis
    yield "scale", scale if isinstance(scale, Tensor) else Constant("F64", _F64.pack(scale))
    zero = zero_point if isinstance(zero_point, Tensor) else _integer(zero_point)
    yield "zero_point", zero
    if axis is not None:
        yield "axis", _integer(axis)


def _integer(value: int) -> Constant:
    return Constant("I64", _I64.pack(value))


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Items):
        yield from value.pairs
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


@dataclass(frozen=True, slots=True)
class Located:
    """The tensors of a pickle, findings about what was left out, and storages nobody refers to.

    ``unread`` counts the tensors left out. ``holders`` are the names of the tensors in each
    storage, by its key.
    """

    tensors: tuple[TensorView, ...]
    findings: tuple[Finding, ...]
    unused: tuple[Record, ...]
    unread: int
    holders: Mapping[str, Sequence[str]]


def tensors_of(root: Any, records: Mapping[str, Record], place: Place) -> Located:
    """Return the tensors below ``root`` in file order, tied ones once, and what was left out.

    ``records`` are the storages by key. Raises CheckpointError when a tensor does not lie in its
    storage (WG106), a storage contradicts its record (WG107), or a limit is exceeded (WG116).
    """
    walk = _Walk(place)
    walk.visit(root, "", 0)
    walk.add_quantisers()
    names: dict[object, list[str]] = {}
    for name in sorted(walk.found):
        names.setdefault(_identity(name, walk.found[name]), []).append(name)
    reader = _Reader(records, walk)
    placed = []
    for first, *aliases in names.values():
        located = reader.view(first, walk.found[first])
        if located is not None:
            start, view = located
            placed.append((start, first, replace(view, aliases=tuple(aliases))))
    placed.sort(key=lambda entry: entry[:2])
    holders = _holders(walk.found)
    # a tensor that was left out may have storages that nothing else tells of
    unused = () if walk.findings else (r for key, r in records.items() if key not in holders)
    views = tuple(view for _, _, view in placed)
    return Located(views, tuple(walk.findings), tuple(unused), walk.unread, holders)


def _holders(found: Mapping[str, Tensor | Constant]) -> dict[str, list[str]]:
    holders: dict[str, list[str]] = {}
    for name in sorted(found):
        tensor = found[name]
        if isinstance(tensor, Tensor):
            holders.setdefault(tensor.storage.key, []).append(name)
    return holders


def _identity(name: str, tensor: Tensor | Constant) -> object:
    if isinstance(tensor, Constant):
        return name
    # the stride of a dimension of one element has no meaning
    strides = tuple(
        0 if size == 1 else step for size, step in zip(tensor.shape, tensor.strides, strict=True)
    )
    return tensor.storage.key, tensor.offset, tensor.shape, strides, tensor.dtype


@dataclass(frozen=True, slots=True)
class _Reader:
    """Checks tensors against the records that hold their storages."""

    records: Mapping[str, Record]
    walk: _Walk
    cache: SlabCache = field(default_factory=SlabCache)

    def view(self, name: str, tensor: Tensor | Constant) -> tuple[int, TensorView] | None:
        """Return where the tensor starts and its view; None, with a finding, if not readable."""
        if isinstance(tensor, Constant):
            place = self.walk.place
            dtype = DTYPES[tensor.dtype]
            return place.offset, TensorView(name, dtype, (), place.file.name, None, tensor)
        return self._view(name, tensor)

    def _view(self, name: str, tensor: Tensor) -> tuple[int, TensorView] | None:
        record = self._record(name, tensor.storage)
        dtype = DTYPES.get(tensor.dtype)
        if dtype is None:
            self._leave_out("WG108", name, f"has the dtype torch.{tensor.dtype}")
            return None
        item = dtype.block_bytes
        self._check_extent(name, tensor, item, record)
        logical = math.prod(tensor.shape) * item
        if logical > MAX_EXPANSION * record.nbytes + EXPANSION_SLACK:
            self._leave_out("WG116", name, f"expands {record.nbytes} stored bytes to {logical}")
            return None
        shape = _unpacked(tensor.shape, dtype)
        if shape is None:
            self._leave_out("WG119", name, "is a scalar of packed values")
            return None
        start = record.offset + tensor.offset * item
        file = self.walk.place.file
        contiguous = is_contiguous(tensor.shape, tensor.strides)
        source: ByteSource = FileRange(file, start)
        if not contiguous:
            strides = tuple(step * item for step in tensor.strides)
            source = StridedRange(file, start, tensor.shape, strides, item, self.cache)
        return start, TensorView(
            name, dtype, shape, file.name, start if contiguous else None, source
        )

    def _leave_out(self, code: str, name: str, words: str) -> None:
        self.walk.note(code, f"{name!r:.100} {words}; it was not read", name)
        self.walk.unread += 1

    def _record(self, name: str, storage: Storage) -> Record:
        place = self.walk.place
        record = self.records.get(storage.key)
        if record is None:
            missing = f"{f'data/{storage.key}'!r:.80}"
            raise place.error(
                "WG106",
                f"{name!r:.100} lies in the record {missing}, which the archive lacks",
                name,
            )
        item = storage_item_bytes(storage.dtype)
        if storage.elements * item != record.nbytes:
            raise place.error(
                "WG107",
                f"the storage of {name!r:.100} has {storage.elements * item} bytes, its record"
                f" {record.name!r:.80} has {record.nbytes}",
                name,
            )
        return record

    def _check_extent(self, name: str, tensor: Tensor, item: int, record: Record) -> None:
        # torch_globals has bounded sizes, strides and offset, and matched their numbers
        reach = 0
        if 0 not in tensor.shape:
            steps = zip(tensor.shape, tensor.strides, strict=True)
            reach = 1 + sum((size - 1) * step for size, step in steps)
        end = (tensor.offset + reach) * item
        if end > record.nbytes:
            raise self.walk.place.error(
                "WG106",
                f"{name!r:.100} reaches to byte {end} of a storage of {record.nbytes} bytes",
                name,
            )


def storage_item_bytes(dtype: str) -> int:
    """Return the bytes of one unit of a storage's count."""
    known = DTYPES.get(dtype)
    return _FOREIGN_BYTES.get(dtype, 1) if known is None else known.block_bytes


def _unpacked(shape: tuple[int, ...], dtype: DType) -> tuple[int, ...] | None:
    """Return the shape in elements; PyTorch counts bytes where two elements share one."""
    if dtype.block_elements == 1:
        return shape
    return (*shape[:-1], shape[-1] * dtype.block_elements) if shape else None


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a view's elements lie one after another in C order."""
    if 0 in shape:
        return True
    expected = 1
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
