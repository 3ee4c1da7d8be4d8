"""The safetensors format: 8 bytes of header length, a JSON header, one buffer of tensor data.

Source: the format section of the safetensors project's README. The format does not demand that
tensors start at multiples of their element's size, and older libraries did not see to it, so
unaligned tensors are no finding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from weightguard.checkpoint.container import ParsedFile
from weightguard.checkpoint.files import CheckpointFile, FileRange
from weightguard.checkpoint.names import shown
from weightguard.checkpoint.safetensors.header import HEADER_START, Entry, Header
from weightguard.errors import CheckpointError, malformed
from weightguard.finding import Finding, finding
from weightguard.tensor import DTYPES, MAX_DIMENSIONS, DType, TensorView
from weightguard.units import counted

MAX_HEADER_BYTES = 100_000_000
"""The limit of the format's own implementation."""

MAX_TENSORS = 1_000_000
"""The largest mixtures of experts have about 100,000."""

MAX_EXTENT = 1 << 63
"""No file offset, and so no element count, is larger."""

MAX_READ_FACTOR = 4
"""Overlapping tensors may together hold this many times the file's bytes, which an audit reads."""

_DTYPES = {
    name: DTYPES[name]
    for name in (
        "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0",
        "F8_E4M3FNUZ", "F8_E5M2FNUZ", "U16", "I16", "F16", "BF16", "U32", "I32", "F32",
        "C64", "U64", "I64", "F64",
    )
}  # fmt: skip


def parse_safetensors(file: CheckpointFile) -> ParsedFile:
    """Return the tensors of a safetensors file in offset order; reads the header only.

    Raises CheckpointError: WG102 where the file is cut; WG103 for a malformed header or entry;
    WG106, WG107 and WG108 for a tensor that contradicts the file, itself or the format; WG116
    above a limit. Repeated names (first kept), holes, overlaps and anything odd that leaves the
    tensors readable are findings.
    """
    header = Header(file, _read_header(file))
    data_start = HEADER_START + header.nbytes
    tensors, repeated = _tensors(file, header, data_start)
    tensors.sort(key=_extent)
    layout = sorted((*tensors, *repeated), key=_extent) if repeated else tensors
    _check_bounds(file, layout, data_start)
    findings = [*header.findings, *_repetition(repeated)]
    findings += _tiling(file, layout, data_start)
    return ParsedFile(tuple(tensors), header.metadata, tuple(findings))


def _read_header(file: CheckpointFile) -> bytes:
    if file.size < HEADER_START:
        raise malformed(
            "WG102",
            f"{shown(file.name)} has {file.size} bytes, too few for a header's length",
            file=file.name,
            offset=file.size,
        )
    length = int.from_bytes(file.read(0, HEADER_START, limit=HEADER_START), "little")
    if length > MAX_HEADER_BYTES:
        raise malformed(
            "WG116",
            f"{shown(file.name)} claims a header of {length} bytes; the format allows "
            f"{MAX_HEADER_BYTES}",
            file=file.name,
            offset=0,
            remedy="Fetch the file again: the length is damaged, or the file is something else.",
        )
    if HEADER_START + length > file.size:
        raise malformed(
            "WG102",
            f"{shown(file.name)} ends at byte {file.size}, inside its header of {length} bytes",
            file=file.name,
            offset=file.size,
        )
    return file.read(HEADER_START, length, limit=MAX_HEADER_BYTES)


def _tensors(
    file: CheckpointFile, header: Header, data_start: int
) -> tuple[list[TensorView], list[TensorView]]:
    """Return the tensors with unique names, and those whose name was there before."""
    unique: dict[str, TensorView] = {}
    repeated: list[TensorView] = []
    for count, entry in enumerate(header.entries()):
        if count == MAX_TENSORS:
            words = f"{shown(file.name)} lists more than {MAX_TENSORS} tensors"
            raise header.error("WG116", entry.place, words)
        tensor = _tensor(file, header, entry, data_start)
        if entry.name in unique:
            repeated.append(tensor)
        else:
            unique[entry.name] = tensor
    return list(unique.values()), repeated


def _tensor(file: CheckpointFile, header: Header, entry: Entry, data_start: int) -> TensorView:
    dtype = _DTYPES.get(entry.dtype) if isinstance(entry.dtype, str) else None
    if dtype is None:
        raise _bad(header, "WG108", entry, f"has the dtype {_brief(entry.dtype)}")
    offsets = entry.data_offsets
    if not _integers(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= MAX_EXTENT:
        raise _bad(header, "WG106", entry, f"has the data_offsets {_brief(offsets)}")
    shape = _shape(header, entry)
    begin, end = offsets
    expected = _nbytes(header, entry, dtype, shape)
    if expected != end - begin:
        words = f"has {end - begin} bytes, but {dtype.name} of shape {_brief(list(shape))} needs "
        raise _bad(header, "WG107", entry, f"{words}{expected}")
    start = data_start + begin
    return TensorView(entry.name, dtype, shape, file.name, start, FileRange(file, start))


def _shape(header: Header, entry: Entry) -> tuple[int, ...]:
    shape = entry.shape
    if not _integers(shape):
        raise _bad(header, "WG107", entry, f"has the shape {_brief(shape)}")
    if len(shape) > MAX_DIMENSIONS:
        raise _bad(header, "WG107", entry, f"has {len(shape)} dimensions, above {MAX_DIMENSIONS}")
    # a dimension of zero hides no overflow of the others: loaders multiply in any order
    if max(shape, default=0) > MAX_EXTENT or math.prod(n or 1 for n in shape) > MAX_EXTENT:
        raise _bad(header, "WG107", entry, "has more elements than any file can hold")
    return tuple(shape)


def _nbytes(header: Header, entry: Entry, dtype: DType, shape: tuple[int, ...]) -> int:
    try:
        return dtype.nbytes(math.prod(shape))
    except ValueError as error:
        raise _bad(header, "WG107", entry, f"ends inside a byte: {error}") from error


def _integers(value: Any) -> bool:
    # bool is a subclass of int, and JSON's true is no size
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _bad(header: Header, code: str, entry: Entry, words: str) -> CheckpointError:
    return header.error(code, entry.place, f"tensor {shown(entry.name)} {words}", entry.name)


def _extent(tensor: TensorView) -> tuple[int, int]:
    start = tensor.offset or 0
    return start, start + tensor.nbytes


def _check_bounds(file: CheckpointFile, layout: Sequence[TensorView], data_start: int) -> None:
    """Raise unless every tensor lies in the file and an audit's reading stays linear in it."""
    outside = next((t for t in layout if _extent(t)[1] > file.size), None)
    if outside is not None:
        raise _outside(file, layout, data_start, outside)
    total = sum(tensor.nbytes for tensor in layout)
    if total > MAX_READ_FACTOR * file.size:
        raise malformed(
            "WG116",
            f"the tensors of {shown(file.name)} overlap so much that they hold {total} bytes of "
            f"a file of {file.size}",
            file=file.name,
            offset=data_start,
        )


def _outside(
    file: CheckpointFile, layout: Sequence[TensorView], data_start: int, outside: TensorView
) -> CheckpointError:
    start, end = _extent(outside)
    if next(_tiling(file, layout, data_start), None) is None:
        needed = _extent(layout[-1])[1]
        return malformed(
            "WG102",
            f"{shown(file.name)} has {file.size} of the {needed} bytes that its header promises; "
            f"{shown(outside.name)} is the first tensor cut off",
            file=file.name,
            offset=file.size,
            tensor=outside.name,
        )
    return malformed(
        "WG106",
        f"tensor {shown(outside.name)} lies at bytes {start} to {end}, outside the {file.size} "
        f"bytes of {shown(file.name)}",
        file=file.name,
        offset=start,
        tensor=outside.name,
    )


def _tiling(
    file: CheckpointFile, layout: Sequence[TensorView], data_start: int
) -> Iterator[Finding]:
    """Yield what keeps ``layout``, in offset order, from tiling the buffer: each kind once."""
    holes: list[tuple[int, int]] = []
    overlaps: list[TensorView] = []
    reached = data_start
    for tensor in layout:
        start, end = _extent(tensor)
        if start > reached:
            holes.append((reached, start - reached))
        elif start < reached:
            overlaps.append(tensor)
        reached = max(reached, end)
    if holes:
        lost = sum(size for _, size in holes)
        where = f"in {counted(len(holes), 'hole')} between its tensors"
        words = f"{shown(file.name)} has {counted(lost, 'byte')} {where}"
        yield finding("WG105", words, file=file.name, offset=holes[0][0], evidence={"bytes": lost})
    if overlaps:
        yield _overlap(overlaps)
    if reached < file.size:
        rest = file.size - reached
        words = f"{shown(file.name)} has {counted(rest, 'byte')} after its last tensor"
        yield finding("WG105", words, file=file.name, offset=reached, evidence={"bytes": rest})


def _overlap(overlaps: Sequence[TensorView]) -> Finding:
    first = overlaps[0]
    return finding(
        "WG105",
        f"tensor {shown(first.name)} begins inside another tensor; "
        f"{counted(len(overlaps), 'such overlap')}",
        file=first.shard,
        offset=first.offset,
        tensor=first.name,
        evidence={"overlaps": len(overlaps)},
    )


def _repetition(repeated: Sequence[TensorView]) -> Iterator[Finding]:
    if repeated:
        first = repeated[0]
        yield finding(
            "WG104",
            f"the header lists {shown(first.name)} twice and the first entry was read; "
            f"{counted(len(repeated), 'such repetition')}",
            file=first.shard,
            offset=first.offset,
            tensor=first.name,
            evidence={"repetitions": len(repeated)},
        )
