"""A repair as text: what was healed by what, where the result is, and what remains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from weightguard_cli.escape import escape_name, guard_lines
from weightguard_cli.formats.text import render
from weightguard_cli.presentation import Presentation
from weightguard_cli.units import byte_size, counted, listed

if TYPE_CHECKING:
    from weightguard.repair import RepairOutcome, TensorRepair

MAX_SHOWN = 20
"""Tensors and files that are named; JSON has them all."""


def repair_text(outcome: RepairOutcome, presentation: Presentation) -> str:
    """Return the outcome as text that ends with a newline."""
    head = presentation.style.paint(*_head(outcome), bold=True)
    lines = [head, *(f"  {line}" for line in _healed(outcome)), *_where(outcome), ""]
    return guard_lines("\n".join(lines)) + "\n" + render(outcome.report, presentation)


def _head(outcome: RepairOutcome) -> tuple[str, str]:
    done = _is_done(outcome)
    if outcome.healed:
        said = "all damage is healed, and every digest is the manifest's"
        return (f"HEALED: {said}", "good") if done else ("INTACT: nothing was damaged", "good")
    if done:
        return "PARTLY HEALED: damage remains, as told below", "bad"
    return "NOT HEALED: nothing could be restored, and nothing was changed", "critical"


def _is_done(outcome: RepairOutcome) -> bool:
    return bool(outcome.tensors or outcome.containers or outcome.resumed)


def _healed(outcome: RepairOutcome) -> Iterator[str]:
    if outcome.resumed:
        yield "an interrupted repair was finished from its journal"
    if outcome.discarded:
        yield "the journal of an interrupted repair was removed: its files were replaced since"
    for tensor in outcome.tensors[:MAX_SHOWN]:
        yield f"{escape_name(tensor.tensor)} in {escape_name(tensor.file)}: {_sources(tensor)}"
    if len(outcome.tensors) > MAX_SHOWN:
        yield f"and {counted(len(outcome.tensors) - MAX_SHOWN, 'more tensor')}"
    for container in outcome.containers[:MAX_SHOWN]:
        size = counted(container.nbytes, "byte")
        yield f"{escape_name(container.file)}: {size} of header, metadata or length by parity"
    if len(outcome.containers) > MAX_SHOWN:
        yield f"and {counted(len(outcome.containers) - MAX_SHOWN, 'more file')}"
    if outcome.fetched:
        yield f"read {byte_size(outcome.fetched)} of tensors from the golden copy"
    if outcome.refused:
        yield f"the golden copy's {_named(outcome.refused)} is not the manifest's, and was refused"


def _named(names: Sequence[str]) -> str:
    """Return the first names as text may hold them, and how many more there are."""
    more = len(names) - MAX_SHOWN
    rest = [f"{more:,} more"] if more > 0 else []
    return listed([escape_name(name) for name in names[:MAX_SHOWN]] + rest)


def _sources(tensor: TensorRepair) -> str:
    return listed([f"{counted(n, 'block')} by {source}" for source, n in tensor.blocks.items()])


def _where(outcome: RepairOutcome) -> Iterator[str]:
    if outcome.output is None:
        if not outcome.healed:
            yield "  Nothing was written."
        if not outcome.report.complete:
            yield "  It cannot be opened, and no parity knows its files: only a whole copy helps."
        return
    what = "The result" if _is_done(outcome) else "A copy, the same as what was given,"
    yield f"  {what} is at {escape_name(outcome.output)}."
    if outcome.copied:
        yield f"  Copied as they are, not checked: {_named(outcome.copied)}."
    if outcome.left_out:
        left = counted(outcome.left_out, "entry").replace("entrys", "entries")
        yield f"  Left out: {left} of the folder that lead out of it or are no files."
