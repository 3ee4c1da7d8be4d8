"""``weightguard inject``: damage a copy on purpose, to drill what finds and heals damage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightguard_cli.options import CHECKPOINT, NamedPath, format_option

if TYPE_CHECKING:
    from weightguard.inject import Change, Fault, Flip, Truncate, Zero

MAX_SHOWN = 20
"""Changes that the text lists; JSON has them all."""


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.option(
    "-o",
    "--output",
    type=NamedPath(),
    required=True,
    metavar="OUT",
    help="The damaged copy to write; it must not be there, nor lie inside PATH.",
)
@click.option(
    "--flip",
    multiple=True,
    metavar="TENSOR:INDEX:BIT",
    help="Flip one bit of an element, such as model.w:3,17:14; repeatable.",
)
@click.option(
    "--zero",
    multiple=True,
    metavar="TENSOR[:INDEX]",
    help="Zero a tensor, or one element of it; repeatable.",
)
@click.option("--random", "count", type=click.IntRange(1), help="Flip N random bits.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which random bits.")
@click.option(
    "--truncate",
    multiple=True,
    metavar="[FILE:]BYTES",
    help="Cut bytes off a file's end, by default the last weight file's; repeatable.",
)
@format_option
def inject(
    *,
    path: Path,
    output: Path,
    flip: tuple[str, ...],
    zero: tuple[str, ...],
    count: int | None,
    seed: int,
    truncate: tuple[str, ...],
    output_format: str,
) -> int:
    """Write a copy of the checkpoint at PATH to OUT with exactly the damage that is asked for.

    PATH itself is only read. The same options make the same copy. In GGML blocks, BIT counts
    within the whole block that holds the element.

    Exit status: 0 written, 2 could not complete.
    """
    from weightguard.inject import Random
    from weightguard.inject import inject as damage
    from weightguard_cli.json_output import json_text
    from weightguard_cli.output import deliver
    from weightguard_cli.status import CLEAN

    faults: list[Fault] = [*map(_flip, flip), *(_zero(text, path) for text in zero)]
    faults += [] if count is None else [Random(count, seed)]
    faults += map(_truncate, truncate)
    if not faults:
        raise click.UsageError("say what to damage: --flip, --zero, --random or --truncate.")
    made = damage(path, output, faults)
    deliver(json_text(made) if output_format == "json" else _text(made.output, made.changes), None)
    return CLEAN


def _index(text: str) -> tuple[int, ...]:
    digits = [part.strip() for part in text.strip("[]").split(",")] if text.strip("[]") else []
    if not all(part.isascii() and part.isdecimal() for part in digits):
        raise click.UsageError(f"{text!r} is no index; write it like 3,17.")
    return tuple(map(int, digits))


def _flip(text: str) -> Flip:
    from weightguard.inject import Flip

    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not (parts[2].isascii() and parts[2].isdecimal()):
        raise click.UsageError(f"{text!r} is not TENSOR:INDEX:BIT, such as model.w:3,17:14.")
    return Flip(parts[0], _index(parts[1]), int(parts[2]))


def _zero(text: str, path: Path) -> Zero:
    from weightguard import open_checkpoint
    from weightguard.inject import Zero

    name, colon, index = text.rpartition(":")
    if colon:
        with open_checkpoint(path) as checkpoint:
            whole = any(tensor.name == text for tensor in checkpoint.tensors)
        if not whole:
            return Zero(name, _index(index))
    return Zero(text)


def _truncate(text: str) -> Truncate:
    from weightguard.inject import Truncate

    name, colon, size = text.rpartition(":")
    if not (size.isascii() and size.isdecimal()):
        raise click.UsageError(f"{text!r} is no number of bytes to cut off.")
    return Truncate(int(size), name if colon else None)


def _text(output: str, changes: tuple[Change, ...]) -> str:
    from weightguard.units import counted
    from weightguard_cli.escape import escape_name

    lines = [f"Wrote {escape_name(output)} with {counted(len(changes), 'change')}:"]
    lines += [f"  {_line(change)}" for change in changes[:MAX_SHOWN]]
    if len(changes) > MAX_SHOWN:
        lines.append(f"  and {len(changes) - MAX_SHOWN:,} more (use --format json)")
    return "\n".join(lines) + "\n"


def _line(change: Change) -> str:
    from weightguard.units import counted
    from weightguard_cli.escape import escape_name

    place = f"{escape_name(change.file)} at byte {change.offset}"
    if change.kind == "truncate":
        return f"cut {counted(change.nbytes, 'byte')} off {place}"
    index = "" if change.element is None else "[" + ",".join(map(str, change.element)) + "]"
    where = f"{escape_name(change.tensor or '')}{index}, {place}"
    if change.kind == "zero":
        return f"zeroed {counted(change.nbytes, 'byte')} of {where}"
    return f"flipped bit {change.bit} of {where}: {change.before} -> {change.after}"
