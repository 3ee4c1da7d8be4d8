"""The map of a checkpoint: every tensor a cell, and the blocks of those that are damaged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightguard.catalogue import Severity
from weightguard.finding import Finding, Report
from weightguard.ranges import TensorRange
from weightguard.scan.digest import BLOCK_BYTES, block_count
from weightguard.units import byte_size, counted
from weightguard_cli.escape import escape_name

MAX_CELLS = 4_000
"""Tensors that have a cell; those with findings come before others."""
MAX_STRIPS = 40
"""Tensors whose blocks are shown."""
MAX_BINS = 240
"""Parts that a strip is divided into at most; a part then stands for several blocks."""
MAX_NAMED = 12

Worst = Mapping[str, Severity]


@dataclass(frozen=True, slots=True)
class Cell:
    """One tensor: its worst severity's label or ``sound``, and a size class from 1 to 4."""

    kind: str
    size: int
    title: str
    anchor: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of one file, in reading order, and how many have no cell."""

    file: str
    cells: tuple[Cell, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class Strip:
    """A tensor's blocks from first to last: ``marks`` are (left, width) in percent."""

    name: str
    kind: str
    summary: str
    marks: tuple[tuple[float, float], ...]


def worst_by_tensor(findings: Sequence[Finding]) -> dict[str, Severity]:
    """Return the gravest severity of each tensor with a finding."""
    worst: dict[str, Severity] = {}
    for found in findings:
        name = found.location.tensor
        if name is not None:
            worst[name] = max(worst.get(name, Severity.INFO), found.level)
    return worst


def map_rows(report: Report, worst: Worst, anchors: Mapping[str, str]) -> list[Row]:
    """Return the map, a row a file; ``anchors`` lead from a tensor to its first finding."""
    room = max(0, MAX_CELLS - len(worst))
    files: dict[str, list[TensorRange]] = defaultdict(list)
    for tensor in report.ranges:
        files[tensor.file].append(tensor)
    rows = []
    for file, tensors in files.items():
        cells: list[Cell] = []
        for tensor in tensors:
            if tensor.name not in worst:
                if not room:
                    continue
                room -= 1
            if len(cells) < MAX_CELLS:
                cells.append(_cell(tensor, worst.get(tensor.name), anchors.get(tensor.name)))
        rows.append(Row(escape_name(file), tuple(cells), len(tensors) - len(cells)))
    return rows


def _cell(tensor: TensorRange, severity: Severity | None, anchor: str | None) -> Cell:
    kind = "sound" if severity is None else severity.label
    state = "no finding" if severity is None else severity.label
    title = f"{escape_name(tensor.name)}, {tensor.dtype}, {byte_size(tensor.nbytes)}: {state}"
    return Cell(kind, size_class(tensor.nbytes), title, anchor)


def size_class(nbytes: int) -> int:
    """Return how wide a cell is, from 1 to 4."""
    return min(4, max(1, round(math.log10(max(nbytes, 1)) - 3)))


def strips(report: Report, worst: Worst) -> Iterator[Strip]:
    """Yield the blocks of damaged tensors, gravest first, where several are and findings tell."""
    damaged: dict[str, set[int]] = defaultdict(set)
    told: dict[str, int] = {}
    tensors = {tensor.name: tensor for tensor in report.ranges}
    for found in report.findings:
        tensor = tensors.get(found.location.tensor or "")
        if tensor is not None and found.level > Severity.INFO:
            damaged[tensor.name] |= {*_blocks(found, tensor)}
            count = found.evidence.get("block_count")
            told[tensor.name] = max(
                told.get(tensor.name, 0), count if isinstance(count, int) else 0
            )
    several = (n for n in damaged if damaged[n] and tensors[n].nbytes > BLOCK_BYTES)
    names = sorted(several, key=lambda n: -worst[n])
    for name in names[:MAX_STRIPS]:
        yield _strip(tensors[name], sorted(damaged[name]), worst[name].label, told[name])


def _strip(tensor: TensorRange, blocks: list[int], kind: str, told: int) -> Strip:
    total = block_count(tensor.nbytes)
    bins = min(total, MAX_BINS)
    marked = sorted({block * bins // total for block in blocks})
    named = ", ".join(f"{block:,}" for block in blocks[:MAX_NAMED])
    more = max(told, len(blocks)) - min(len(blocks), MAX_NAMED)
    rest = f" and {more:,} more" if more > 0 else ""
    summary = f"{max(told, len(blocks)):,} of {counted(total, 'block')} touched: {named}{rest}"
    marks = tuple((round(100 * b / bins, 3), round(100 / bins, 3)) for b in marked)
    return Strip(escape_name(tensor.name), kind, summary, marks)


def _blocks(found: Finding, tensor: TensorRange) -> Iterator[int]:
    """Yield numbers of blocks that a finding names, or whose elements or bytes it names."""
    at, total = found.location, block_count(tensor.nbytes)
    named = _listed(found, "blocks")
    if at.block is not None:
        named = [*named, at.block]
    elements = _listed(found, "elements")
    if at.element is not None:
        elements = [*elements, at.element]
    for element in elements:
        index = element.get("index") if isinstance(element, dict) else element
        named = [*named, *_block_of(index, tensor)]
    yield from (block for block in named if isinstance(block, int) and 0 <= block < total)


def _listed(found: Finding, key: str) -> list[Any]:
    """Return a list of the evidence; a count under the same key is none."""
    listed = found.evidence.get(key)
    return listed if isinstance(listed, list) else []


def _block_of(index: object, tensor: TensorRange) -> Iterator[int]:
    if not isinstance(index, (list, tuple)) or len(index) != len(tensor.shape):
        return
    flat = 0
    for position, size in zip(index, tensor.shape, strict=True):
        flat = flat * size + position
    yield flat * tensor.nbytes // max(math.prod(tensor.shape), 1) // BLOCK_BYTES
