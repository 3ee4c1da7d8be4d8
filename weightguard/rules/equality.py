"""WG4xx: the checkpoint beside its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from weightguard.checkpoint import Checkpoint
from weightguard.compare import Names, Observed, TensorDifference
from weightguard.finding import Evidence, Finding, finding
from weightguard.locate import ElementChange
from weightguard.manifest import FileRecord, Manifest, TensorRecord
from weightguard.tensor import TensorView

MAX_LISTED = 64
"""Blocks, rows and elements that one finding lists; its counts are always complete."""


def check_equality(
    checkpoint: Checkpoint,
    manifest: Manifest,
    names: Names,
    observed: Observed,
    proven: Iterable[tuple[str, tuple[int, ...]]] = (),
) -> Iterator[Finding]:
    """Yield the findings for everything that differs between checkpoint and manifest.

    ``proven`` are (tensor, index) of elements that are known to have changed by other means.
    """
    records = manifest.document.tensors
    renamed = _renamed(names, records, observed)
    known = set(proven)
    for difference in observed.differences:
        yield changed(_without_refuted(difference, known))
    for tensor in checkpoint.tensors:
        yield from _check_types(tensor, names, records, observed)
    for old, new in renamed.items():
        yield finding("WG406", f"{old!r} of the manifest is here as {new!r}", tensor=new)
    for name in names.missing:
        if name not in renamed:
            yield finding("WG402", "the manifest lists this tensor, the checkpoint does not",
                          tensor=name)  # fmt: skip
    taken = set(renamed.values())
    for name in names.extra:
        if name not in taken:
            yield _extra(name, records, observed)
    for name in names.untied:
        yield finding("WG408", "this name was tied to another tensor and is left out here",
                      tensor=name)  # fmt: skip


def check_files(recorded: dict[str, FileRecord], found: dict[str, FileRecord]) -> Iterator[Finding]:
    """Yield a finding for each file that both know and that differs."""
    for name in sorted(recorded.keys() & found.keys()):
        if recorded[name] != found[name]:
            yield finding(
                "WG407",
                f"SHA-256 is {found[name].sha256}, the manifest says {recorded[name].sha256}",
                file=name,
                evidence={"expected": recorded[name].sha256, "observed": found[name].sha256},
            )


def _renamed(names: Names, records: dict[str, TensorRecord], observed: Observed) -> dict[str, str]:
    by_digest: dict[str, list[str]] = {}
    for name in names.extra:
        by_digest.setdefault(observed.digests[name], []).append(name)
    renamed = {}
    for name in names.missing:
        candidates = by_digest.get(records[name].digest)
        if candidates:
            renamed[name] = candidates.pop(0)
    return renamed


def _check_types(
    tensor: TensorView, names: Names, records: dict[str, TensorRecord], observed: Observed
) -> Iterator[Finding]:
    matched = names.matched.get(tensor.name, ())
    for position, name in enumerate(matched):
        record = records[name]
        if record.dtype != tensor.dtype.name:
            yield finding(
                "WG405",
                f"dtype is {tensor.dtype.name}, the manifest says {record.dtype}",
                file=tensor.shard,
                tensor=tensor.name,
            )
        elif record.shape != tensor.shape:
            yield finding(
                "WG404",
                f"shape is {list(tensor.shape)}, the manifest says {list(record.shape)}",
                file=tensor.shard,
                tensor=tensor.name,
            )
        elif position > 0 and record.digest != observed.digests[tensor.name]:
            yield finding(
                "WG401",
                f"{name!r} was a tensor of its own and is now tied to {tensor.name!r}",
                file=tensor.shard,
                tensor=name,
            )


def _extra(name: str, records: dict[str, TensorRecord], observed: Observed) -> Finding:
    digest = observed.digests[name]
    same = next((known for known, record in records.items() if record.digest == digest), None)
    # equal bytes are no excuse: a loader that finds the name uses it in place of another tensor
    copy = "" if same is None else f"; it is a copy of {same!r}"
    return finding("WG403", f"the manifest does not list this tensor{copy}", tensor=name)


def _without_refuted(
    difference: TensorDifference, proven: set[tuple[str, tuple[int, ...]]]
) -> TensorDifference:
    """Leave out single elements that residues suggest where another of the row is known to differ.

    Two changes can look like one elsewhere in the row, as long as the block's digest does not
    confirm it.
    """
    tensor = difference.tensor
    length = tensor.layout.row_elements
    rows: dict[int, set[tuple[int, ...]]] = {}
    for name, index in proven:
        if name == tensor.name:
            rows.setdefault(tensor.element(index) // length, set()).add(index)
    kept = tuple(
        e for e in difference.elements if e.confirmed or rows.get(e.row, {e.index}) <= {e.index}
    )
    return replace(difference, elements=kept)


def changed(difference: TensorDifference) -> Finding:
    """Return WG401 for a tensor whose bytes differ from its record."""
    tensor = difference.tensor
    first = difference.elements[0] if difference.elements else None
    return finding(
        "WG401",
        _changed_message(difference),
        file=tensor.shard,
        offset=_file_offset(difference),
        tensor=tensor.name,
        block=difference.blocks[0] if difference.blocks else None,
        row=difference.rows[0] if difference.rows else None,
        element=first.index if first else None,
        evidence=_evidence(difference),
    )


def _changed_message(difference: TensorDifference) -> str:
    total = len(difference.elements)
    if not difference.blocks:
        return "the digest differs while every block digest agrees: a deliberate collision"
    if not total:
        return f"{_extent(difference)}; {_unsolved(difference)} changed in each of these rows"
    count = "one element" if total == 1 else f"{total} elements"
    certainty = "" if all(e.confirmed for e in difference.elements) else "consistent with "
    rest = difference.row_count - len({element.row for element in difference.elements})
    tail = f", and {rest} more damaged row{'' if rest == 1 else 's'}" if rest else ""
    first = describe(difference.elements[0])
    return f"{certainty}{count} changed: {first}{' and others' if total > 1 else ''}{tail}"


def _extent(difference: TensorDifference) -> str:
    blocks, rows = len(difference.blocks), difference.row_count
    parts = (
        f"{blocks} block{'' if blocks == 1 else 's'}",
        f"{rows} residue row{'' if rows == 1 else 's'}",
    )
    return f"{' and '.join(parts)} {'differs' if blocks + rows == 1 else 'differ'}"


def _unsolved(difference: TensorDifference) -> str:
    """Return how many elements may have changed where the residues do not tell which."""
    dtype = difference.tensor.dtype
    if dtype.is_quantised or dtype.is_opaque:
        return "more than one word"
    located = difference.row_count <= len(difference.rows)
    if located and dtype.block_bytes <= dtype.word_bytes:
        return "more than one element"
    return "one element or several"


def describe(element: ElementChange) -> str:
    """Return a change in words: index, old and new value, flipped bits."""
    index = "[" + ",".join(map(str, element.index)) + "]"
    flipped = element.flipped
    bits = (
        f"bit {flipped[0]} flipped"
        if len(flipped) == 1
        else f"bits {', '.join(map(str, flipped))} flipped"
    )
    if element.values is None:
        return f"in the block at {index}, {element.old_bits:#x} -> {element.new_bits:#x} ({bits})"
    old, new = element.values
    return f"{index} {old:.7g} -> {new:.7g} ({bits})"


def _file_offset(difference: TensorDifference) -> int | None:
    tensor = difference.tensor
    if tensor.offset is None or not difference.blocks:
        return None
    if difference.elements:
        element, dtype = tensor.element(difference.elements[0].index), tensor.dtype
        return tensor.offset + element // dtype.block_elements * dtype.block_bytes
    if difference.rows:
        return tensor.offset + difference.rows[0] * tensor.layout.row_bytes
    return tensor.offset + (difference.blocks[0] << 20)


def _evidence(difference: TensorDifference) -> Evidence:
    return {
        "expected": difference.expected,
        "observed": difference.observed,
        "block_count": len(difference.blocks),
        "blocks": list(difference.blocks[:MAX_LISTED]),
        "row_count": difference.row_count,
        "rows": list(difference.rows[:MAX_LISTED]),
        "element_count": len(difference.elements),
        "elements": [_element_evidence(element) for element in difference.elements[:MAX_LISTED]],
    }


def _element_evidence(element: ElementChange) -> dict[str, object]:
    entry: dict[str, object] = {
        "index": list(element.index),
        "old_bits": f"{element.old_bits:#x}",
        "new_bits": f"{element.new_bits:#x}",
        "flipped_bits": list(element.flipped),
        "confirmed": element.confirmed,
    }
    if element.values is not None:
        # as text: JSON has no NaN and no infinity
        entry["old"], entry["new"] = (repr(value) for value in element.values)
    return entry
