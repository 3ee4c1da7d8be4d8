"""ONNX's tensor element types: their weightguard dtypes and where typed data of each lies.

Source: TensorProto.DataType and the comments of TensorProto's data fields in onnx.proto (1.23).
"""

from __future__ import annotations

from dataclasses import dataclass

from weightguard.checkpoint.onnx.varints import Storage
from weightguard.tensor import DTYPES, DType

UNDEFINED, FLOAT_TYPE, INT64_TYPE, STRING = 0, 1, 7, 8

FLOAT_DATA, INT32_DATA, STRING_DATA, INT64_DATA = 4, 5, 6, 7
RAW_DATA, DOUBLE_DATA, UINT64_DATA = 9, 10, 11

FLOAT_BYTES = {FLOAT_DATA: 4, DOUBLE_DATA: 8}
"""The width of one value in the fields that hold floats."""


@dataclass(frozen=True, slots=True)
class OnnxType:
    """An element type: its dtype, and the field of TensorProto that typed data is stored in.

    ``storage`` says how the varints of that field become canonical bytes; None where the field
    holds floats, whose bytes are canonical as they lie.
    """

    dtype: DType
    field: int
    storage: Storage | None = None

    def nbytes(self, elements: int) -> int:
        """Return the bytes that raw data of ``elements`` elements takes, the last one padded."""
        return -(-elements * self.dtype.block_bytes // self.dtype.block_elements)

    def stored_values(self, elements: int) -> int:
        """Return how many values typed data of ``elements`` elements consists of.

        Formats of 2 and 4 bits store a packed byte per value, those of 6 bits one element.
        """
        if self.storage is None:
            return elements * (2 if self.dtype.name.startswith("C") else 1)
        return elements if self.storage.six_bits else self.nbytes(elements) // self.storage.width


def _floats(name: str, field: int) -> OnnxType:
    return OnnxType(DTYPES[name], field)


def _codes(name: str, width: int = 1, *, high: int | None = None) -> OnnxType:
    highest = (1 << 8 * width) - 1 if high is None else high
    return OnnxType(DTYPES[name], INT32_DATA, Storage(0, highest, width))


def _signed(name: str, width: int, field: int = INT32_DATA) -> OnnxType:
    half = 1 << 8 * width - 1
    return OnnxType(DTYPES[name], field, Storage(-half, half - 1, width))


def _unsigned64(name: str, width: int) -> OnnxType:
    return OnnxType(DTYPES[name], UINT64_DATA, Storage(0, (1 << 8 * width) - 1, width))


def _six_bits(name: str) -> OnnxType:
    return OnnxType(DTYPES[name], INT32_DATA, Storage(0, 63, 1, six_bits=True))


TYPES: dict[int, OnnxType] = {
    1: _floats("F32", FLOAT_DATA),
    2: _codes("U8"),
    3: _signed("I8", 1),
    4: _codes("U16", 2),
    5: _signed("I16", 2),
    6: _signed("I32", 4),
    7: _signed("I64", 8, INT64_DATA),
    9: _codes("BOOL", high=1),
    10: _codes("F16", 2),
    11: _floats("F64", DOUBLE_DATA),
    12: _unsigned64("U32", 4),
    13: _unsigned64("U64", 8),
    14: _floats("C64", FLOAT_DATA),
    15: _floats("C128", DOUBLE_DATA),
    16: _codes("BF16", 2),
    17: _codes("F8_E4M3"),
    18: _codes("F8_E4M3FNUZ"),
    19: _codes("F8_E5M2"),
    20: _codes("F8_E5M2FNUZ"),
    21: _codes("U4"),
    22: _codes("I4"),
    23: _codes("F4"),
    24: _codes("F8_E8M0"),
    25: _codes("U2"),
    26: _codes("I2"),
    27: _six_bits("F6_E2M3"),
    28: _six_bits("F6_E3M2"),
}
"""Element types by their number in TensorProto.DataType, UNDEFINED and STRING left out."""
