"""Tensors at rest: number formats, the row layout of residues, and a view of canonical bytes.

A tensor's *canonical bytes* are its elements in C order, little-endian, exactly as the format
stores them. Everything weightguard computes is a function of (dtype, shape, canonical bytes).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Protocol

MIN_ROW_ELEMENTS = 64
"""A row covers at least this many elements where there are any (fingerprint-v1, section 4)."""

MAX_DIMENSIONS = 64
"""No known format writes more; a header that claims more is damaged or hostile."""


LAYOUTS_KEPT = 1024
"""Layouts that are not computed again; the tensors of a model share a few shapes."""


@dataclass(frozen=True, slots=True)
class DType:
    """A number format.

    ``block_elements`` elements occupy ``block_bytes`` bytes; both describe the smallest group
    that starts on a byte boundary (1 element for plain types, 32 or 256 for GGML blocks).
    ``word_bytes`` is the width of the unsigned words that residues sum over. ``scalar`` names
    the format that range statistics are computed in, ``block_scalars`` how many of them one
    block yields (a complex number yields two, a Q4_0 block 32 dequantised ones).
    """

    name: str
    block_elements: int
    block_bytes: int
    word_bytes: int
    scalar: str
    block_scalars: int

    @property
    def is_quantised(self) -> bool:
        """Whether statistics are taken on values dequantised from the stored blocks."""
        return self.block_elements >= 32 and self.scalar == "F32"

    @property
    def has_scalar_elements(self) -> bool:
        """Whether each element is one scalar, with bits of its own or a dequantised value."""
        return self.block_scalars == self.block_elements and not self.is_opaque

    @property
    def is_opaque(self) -> bool:
        """Whether the values are unknown to us, so that statistics are taken on raw bytes."""
        return self.block_elements >= 32 and self.scalar == "U8"

    def nbytes(self, elements: int) -> int:
        """Return the size in bytes of ``elements`` elements.

        Raises ValueError when they do not fill whole blocks.
        """
        blocks, rest = divmod(elements, self.block_elements)
        if rest:
            raise ValueError(
                f"{elements} elements of {self.name} do not fill blocks of {self.block_elements}"
            )
        return blocks * self.block_bytes


def _plain(name: str, size: int) -> DType:
    return DType(name, 1, size, min(size, 4), name, 1)


def _packed(name: str, elements: int, size: int) -> DType:
    return DType(name, elements, size, 1, name, elements)


def _ggml(name: str, elements: int, size: int, *, dequantised: bool) -> DType:
    word = 2 if size % 2 == 0 else 1
    if dequantised:
        return DType(name, elements, size, word, "F32", elements)
    return DType(name, elements, size, word, "U8", size)


_PLAIN_SIZES = {
    1: (
        "BOOL", "U8", "I8",
        "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
    ),
    2: ("U16", "I16", "F16", "BF16"),
    4: ("U32", "I32", "F32"),
    8: ("U64", "I64", "F64"),
}  # fmt: skip

_DEQUANTISED = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176),
    "Q6_K": (256, 210), "TQ1_0": (256, 54), "TQ2_0": (256, 66),
}  # fmt: skip

_RAW_BLOCKS = {
    "Q8_1": (32, 36), "Q8_K": (256, 292), "IQ1_S": (256, 50), "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "MXFP4": (32, 17),
    "NVFP4": (64, 36), "Q1_0": (128, 18),
}  # fmt: skip

DTYPES: dict[str, DType] = {
    **{name: _plain(name, size) for size, names in _PLAIN_SIZES.items() for name in names},
    "C64": DType("C64", 1, 8, 4, "F32", 2),
    "C128": DType("C128", 1, 16, 4, "F64", 2),
    "F4": _packed("F4", 2, 1),
    "I4": _packed("I4", 2, 1),
    "U4": _packed("U4", 2, 1),
    "I2": _packed("I2", 4, 1),
    "U2": _packed("U2", 4, 1),
    "F6_E2M3": _packed("F6_E2M3", 4, 3),
    "F6_E3M2": _packed("F6_E3M2", 4, 3),
    **{n: _ggml(n, *geometry, dequantised=True) for n, geometry in _DEQUANTISED.items()},
    **{n: _ggml(n, *geometry, dequantised=False) for n, geometry in _RAW_BLOCKS.items()},
}
"""Every dtype weightguard fingerprints, by its canonical name."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How a tensor divides into rows: the runs of elements that one pair of residues covers.

    ``rows`` rows of ``row_bytes`` bytes, ``row_words`` residue words and ``row_scalars``
    statistic scalars each. A function of dtype and shape alone.
    """

    rows: int
    row_elements: int
    row_bytes: int
    row_words: int
    row_scalars: int


@functools.lru_cache(LAYOUTS_KEPT)
def row_layout(dtype: DType, shape: tuple[int, ...]) -> RowLayout:
    """Return the row layout of a tensor (fingerprint-v1, section 4).

    A row starts as the last dimension and folds in the dimension to its left while it holds
    fewer than ``MIN_ROW_ELEMENTS`` elements or does not fill whole dtype blocks.
    """
    elements = math.prod(shape)
    if elements == 0:
        return RowLayout(0, 0, 0, 0, 0)
    row, leading = 1, list(shape)
    while leading and (row < MIN_ROW_ELEMENTS or row % dtype.block_elements):
        row *= leading.pop()
    row_bytes = dtype.nbytes(row)
    blocks = row // dtype.block_elements
    return RowLayout(
        rows=elements // row,
        row_elements=row,
        row_bytes=row_bytes,
        row_words=row_bytes // dtype.word_bytes,
        row_scalars=blocks * dtype.block_scalars,
    )


class ByteSource(Protocol):
    """Random access to one tensor's canonical bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the writable byte ``buffer`` with the canonical bytes from ``offset`` on.

        Safe to call from several threads. Raises CheckpointError when the file ends early.
        """
        ...


@dataclass(frozen=True, slots=True)
class TensorView:
    """One tensor of a checkpoint: what it is, where it lies, and how to read its bytes.

    ``shard`` is the file's name relative to the checkpoint, ``offset`` the file offset of the
    first canonical byte, or None where the bytes are not one contiguous run of the file.
    ``aliases`` are further names of the same bytes with the same dtype and shape.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: str
    offset: int | None
    source: ByteSource
    aliases: tuple[str, ...] = ()

    @property
    def elements(self) -> int:
        """The number of elements, 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of canonical bytes."""
        return self.dtype.nbytes(self.elements)

    @property
    def layout(self) -> RowLayout:
        """The row layout that residues and row statistics follow."""
        return row_layout(self.dtype, self.shape)

    def index(self, element: int) -> tuple[int, ...]:
        """Return the full index of element number ``element`` in C order."""
        index = []
        for size in reversed(self.shape):
            element, position = divmod(element, size)
            index.append(position)
        return tuple(reversed(index))

    def element(self, index: tuple[int, ...]) -> int:
        """Return the number, in C order, of the element at a full index.

        Raises ValueError for an index that no element has.
        """
        if len(index) != len(self.shape):
            raise ValueError(f"{index} is no index into shape {self.shape}")
        element = 0
        for position, size in zip(index, self.shape, strict=True):
            if not 0 <= position < size:
                raise ValueError(f"{index} is outside of shape {self.shape}")
            element = element * size + position
        return element

    def read(self, start: int = 0, stop: int | None = None) -> bytearray:
        """Return a copy of canonical bytes ``start:stop``; meant for small ranges."""
        data = bytearray((self.nbytes if stop is None else stop) - start)
        self.source.read_into(start, memoryview(data))
        return data
