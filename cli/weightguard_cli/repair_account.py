"""What a repair has to tell: what was healed by what, where the result is, and what remains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from weightguard.units import byte_size, counted, listed
from weightguard_cli.account import Account, ColumnKind, Line, table_of
from weightguard_cli.escape import escape_name, escape_text
from weightguard_cli.verdict import Scope, Verdict, verdict

if TYPE_CHECKING:
    from weightguard.repair import RepairOutcome, TensorRepair

MAX_SHOWN = 20
"""Tensors and files that are named; JSON has them all."""

_COLUMNS: tuple[tuple[str, ColumnKind], ...] = (
    ("what, by which source", "words"),
    ("file", "name"),
    ("tensor", "name"),
)


def repair_account(outcome: RepairOutcome, scope: Scope) -> Account:
    """Return the account of a repair; ``scope`` is that of the report about its result."""
    report = outcome.report
    facts = [("result" if outcome.output else "checkpoint", escape_name(report.checkpoint))]
    if report.complete:
        facts.append(("verified", str(verdict(report, scope))))
    healed = [*_healed(outcome)]
    return Account(
        _verdict(outcome),
        outcome,
        tuple(facts),
        tuple(_sentences(outcome)),
        tables=(table_of("Healed", _COLUMNS, healed, MAX_SHOWN),),
    )


def _verdict(outcome: RepairOutcome) -> Verdict:
    done = _is_done(outcome)
    if outcome.healed:
        if done:
            said = "all damage is healed, and every digest is the manifest's"
            return Verdict("HEALED", said, "good")
        return Verdict("INTACT", "nothing was damaged", "good")
    if done:
        return Verdict("PARTLY HEALED", "damage remains, as told below", "bad")
    said = "nothing could be restored, and nothing was changed"
    return Verdict("NOT HEALED", said, "critical")


def _is_done(outcome: RepairOutcome) -> bool:
    return bool(outcome.tensors or outcome.containers or outcome.resumed)


def _healed(outcome: RepairOutcome) -> Iterator[Line]:
    for tensor in outcome.tensors:
        yield Line((_sources(tensor), escape_name(tensor.file), escape_name(tensor.tensor)), "good")
    for container in outcome.containers:
        size = counted(container.nbytes, "byte")
        words = f"{size} of header, metadata or length by {container.source}"
        yield Line((words, escape_name(container.file), ""), "good")


def _sentences(outcome: RepairOutcome) -> Iterator[str]:
    if outcome.resumed:
        yield "an interrupted repair was finished from its journal"
    if outcome.discarded:
        yield "the journal of an interrupted repair was removed: its files were replaced since"
    yield from _where(outcome)
    yield from _shortfall(outcome)
    unattested = [c.file for c in outcome.containers if not c.attested]
    if unattested:
        yield (
            f"header and metadata of {_named(unattested)} are the golden copy's: the tensors prove "
            "where they lie, but no file digest in the manifest covers the rest"
        )
    if outcome.fetched:
        yield f"read {byte_size(outcome.fetched)} of tensors from the golden copy"
    if outcome.refused:
        yield f"the golden copy's {_named(outcome.refused)} is not the manifest's, and was refused"


def _why_unopened(outcome: RepairOutcome) -> Iterator[str]:
    if outcome.shortfall is None:
        yield (
            "it cannot be opened, and neither parity nor a golden copy tells how its files were: "
            "give a sound copy with files of the same names and format (--golden), or fetch them "
            "again"
        )


def _shortfall(outcome: RepairOutcome) -> Iterator[str]:
    lost = outcome.shortfall
    if lost is not None:
        yield (
            f"parity does not suffice: {counted(lost.blocks, 'block')} lost in "
            f"{counted(lost.groups, 'group')}, and it restores one in each group; a sound copy of "
            "the model restores them all (--golden)"
        )


def _named(names: Sequence[str]) -> str:
    """Return the first names as text may hold them, and how many more there are."""
    more = len(names) - MAX_SHOWN
    rest = [f"{more:,} more"] if more > 0 else []
    return listed([escape_name(name) for name in names[:MAX_SHOWN]] + rest)


def _sources(tensor: TensorRepair) -> str:
    return listed([f"{counted(n, 'block')} by {source}" for source, n in tensor.blocks.items()])


def _where(outcome: RepairOutcome) -> Iterator[str]:
    if outcome.unused is not None:
        yield f"gone without parity: {escape_text(outcome.unused)}"
    if outcome.output is None:
        if not outcome.healed:
            yield "nothing was written"
        if not outcome.report.complete:
            yield from _why_unopened(outcome)
        return
    if not _is_done(outcome):
        yield "the result is a copy, the same as what was given"
    if outcome.copied:
        yield f"copied as they are, not checked: {_named(outcome.copied)}"
    if outcome.left_out:
        left = counted(outcome.left_out, "entry")
        yield f"left out: {left} of the folder that lead out of it or are no files"
