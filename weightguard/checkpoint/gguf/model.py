"""The GGUF format: header, metadata, tensor infos, and tensor data at aligned offsets.

Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from weightguard.checkpoint.container import ParsedFile
from weightguard.checkpoint.files import CheckpointFile, FileRange
from weightguard.checkpoint.gguf.cursor import Cursor
from weightguard.checkpoint.gguf.metadata import FindingLog, decode, read_header
from weightguard.checkpoint.names import shown
from weightguard.errors import CheckpointError, malformed
from weightguard.tensor import DTYPES, MAX_DIMENSIONS, DType, TensorView
from weightguard.units import counted

FORMAT_DIMENSIONS = 4
"""What the format allows; up to ``MAX_DIMENSIONS`` is read, with a finding."""

MAX_NAME_BYTES = 2 << 20
"""A tensor's name; real ones stay below 64 bytes."""

MAX_EXTENT = 1 << 62
"""No element count or offset is larger; below it, no sum of two wraps around."""

GGML_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""ggml's tensor types, by their number in the file."""

REMOVED_TYPES = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
"""Types that ggml once had; no current program reads them."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of the tensor list; ``offset`` counts from the start of the data."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    place: int

    @property
    def end(self) -> int:
        """The offset past the last byte."""
        return self.offset + self.nbytes


def parse_gguf(file: CheckpointFile) -> ParsedFile:
    """Return the tensors of one GGUF file, in the order of their data; reads the header only.

    Metadata are the scalars and the beginnings of strings, as text. Raises CheckpointError:
    WG101 where the file is no GGUF; WG119 for version 1 and big-endian files; WG102 where it is
    cut; WG103 for a malformed header; WG106 and WG107 for a tensor whose place or size cannot
    be; WG108 for an unknown type; WG116 above a limit. Repeated names and keys, unaligned
    offsets, holes, overlaps and more than four dimensions are findings.
    """
    cursor, log = Cursor(file), FindingLog(file)
    header = read_header(cursor, log)
    infos = _tensor_infos(cursor, header.tensors, log)
    start = cursor.position + -cursor.position % header.alignment
    _check_layout(file, infos, start, header.alignment, log)
    views = (_view(info, start, file) for info in _unique(infos, file, log))
    metadata = {key: value.shown() for key, value in header.values.items()}
    return ParsedFile(tuple(views), metadata, log.close())


def _tensor_infos(cursor: Cursor, count: int, log: FindingLog) -> list[TensorInfo]:
    infos = [_tensor_info(cursor, log) for _ in range(count)]
    infos.sort(key=lambda info: (info.offset, info.nbytes, info.place))
    return infos


def _tensor_info(cursor: Cursor, log: FindingLog) -> TensorInfo:
    place = cursor.position
    data, _ = cursor.text("a tensor name", most=MAX_NAME_BYTES)
    name = decode(data, "the tensor name", place, log)
    shape = _shape(cursor, name, log)
    at = cursor.position
    dtype = _dtype(cursor.u32(), name, at, cursor.file)
    at = cursor.position
    offset = cursor.u64()
    if offset > MAX_EXTENT:
        raise _bad("WG106", name, f"begins at byte {offset} of the data", cursor.file, at)
    nbytes = _nbytes(dtype, shape, name, place, cursor.file)
    return TensorInfo(name, dtype, shape, offset, nbytes, place)


def _shape(cursor: Cursor, name: str, log: FindingLog) -> tuple[int, ...]:
    at = cursor.position
    count = cursor.u32()
    if count > MAX_DIMENSIONS:
        raise _bad("WG103", name, f"has {count} dimensions", cursor.file, at)
    if count > FORMAT_DIMENSIONS:
        message = f"{shown(name)} has {count} dimensions; GGUF allows {FORMAT_DIMENSIONS}"
        log.add("WG107", message, offset=at, tensor=name)
    return tuple(reversed([cursor.u64() for _ in range(count)]))


def _dtype(number: int, name: str, at: int, file: CheckpointFile) -> DType:
    if number in GGML_TYPES:
        return DTYPES[GGML_TYPES[number]]
    if number in REMOVED_TYPES:
        words = f"has ggml type {number} ({REMOVED_TYPES[number]}), which ggml removed"
    else:
        words = f"has the unknown ggml type {number}"
    raise _bad("WG108", name, words, file, at)


def _nbytes(
    dtype: DType, shape: tuple[int, ...], name: str, place: int, file: CheckpointFile
) -> int:
    elements = math.prod(shape)
    if elements > MAX_EXTENT or max(shape, default=0) > MAX_EXTENT:
        raise _bad("WG106", name, "has more elements than any file can hold", file, place)
    row = shape[-1] if shape else 1
    if row % dtype.block_elements:
        words = f"has rows of {row} elements, not whole blocks of {dtype.block_elements}"
        raise _bad("WG107", name, f"of type {dtype.name} {words}", file, place)
    return dtype.nbytes(elements)


def _check_layout(
    file: CheckpointFile, infos: Sequence[TensorInfo], start: int, alignment: int, log: FindingLog
) -> None:
    """Check that ``infos``, in offset order, tile the file; WG102 or WG106 where they leave it."""
    problems = list(_untiled(infos, start, alignment))
    end = max((info.end for info in infos if info.nbytes), default=0)
    if start + end > file.size and end:
        raise _outside(file, infos, start, None if problems else start + end)
    for info in infos:
        if info.offset % alignment:
            message = f"{shown(info.name)} begins at byte {info.offset} of the data, unaligned"
            log.add("WG106", message, offset=info.place, tensor=info.name)
    for message, offset in problems:
        log.add("WG105", message, offset=offset)
    rest = start + end + -end % alignment
    if rest < file.size:
        log.add("WG105", f"{counted(file.size - rest, 'byte')} after the last tensor", offset=rest)


def _untiled(infos: Sequence[TensorInfo], start: int, alignment: int) -> list[tuple[str, int]]:
    problems = []
    end = 0
    for info in infos:
        # an unaligned offset is a finding of its own
        begin = info.offset - info.offset % alignment
        free = end + -end % alignment
        if info.nbytes and info.offset < end:
            problems.append((f"{shown(info.name)} begins inside another tensor", start + begin))
        elif begin > free:
            problems.append((f"a hole of {counted(begin - free, 'byte')}", start + free))
        end = max(end, info.end)
    return problems


def _outside(
    file: CheckpointFile, infos: Sequence[TensorInfo], start: int, expected: int | None
) -> CheckpointError:
    first = next(info for info in infos if info.nbytes and start + info.end > file.size)
    if expected is None:
        words = f"ends at byte {start + first.end}, but the file has {file.size} bytes"
        return _bad("WG106", first.name, words, file, first.place)
    return malformed(
        "WG102",
        f"{shown(file.name)} has {file.size} bytes, but its tensors need {expected}",
        file=file.name,
        offset=file.size,
        tensor=first.name,
    )


def _unique(
    infos: Sequence[TensorInfo], file: CheckpointFile, log: FindingLog
) -> Sequence[TensorInfo]:
    """Return ``infos`` without those whose name the header lists before."""
    first: dict[str, int] = {}
    for info in infos:
        first[info.name] = min(first.get(info.name, info.place), info.place)
    if len(first) == len(infos):
        return infos
    for info in sorted(infos, key=lambda info: info.place):
        if info.place != first[info.name]:
            message = f"{shown(file.name)} lists {shown(info.name)} twice"
            log.add("WG104", message, offset=info.place, tensor=info.name)
    return [info for info in infos if info.place == first[info.name]]


def _view(info: TensorInfo, start: int, file: CheckpointFile) -> TensorView:
    offset = start + info.offset
    return TensorView(info.name, info.dtype, info.shape, file.name, offset, FileRange(file, offset))


def _bad(code: str, name: str, words: str, file: CheckpointFile, offset: int) -> CheckpointError:
    return malformed(code, f"{shown(name)} {words}", file=file.name, offset=offset, tensor=name)
