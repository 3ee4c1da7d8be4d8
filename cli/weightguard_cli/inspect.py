"""``weightguard inspect``: what a manifest says, without the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightguard_cli.options import MANIFEST, format_option

if TYPE_CHECKING:
    from weightguard.manifest import ExactValue, ManifestDocument, TensorRecord

DIGEST_DIGITS = 16
"""Digits of a digest that the table shows; JSON has all of them."""


@click.command()
@click.argument("manifest", type=MANIFEST)
@click.option("--tensor", "pattern", metavar="GLOB", help="Only tensors whose name matches.")
@format_option
def inspect(manifest: Path, pattern: str | None, output_format: str) -> int:
    """Show the tensors, digests and value ranges that MANIFEST records.

    Exit status: 0 shown, 2 the manifest or its sidecar is damaged or missing.
    """
    from weightguard import Manifest
    from weightguard_cli.escape import guard_lines
    from weightguard_cli.json_output import json_text
    from weightguard_cli.output import deliver
    from weightguard_cli.status import CLEAN

    with Manifest.read(manifest) as opened:
        document = opened.document
    tensors = {
        name: record
        for name, record in sorted(document.tensors.items())
        if pattern is None or _matches(pattern, name, record)
    }
    if output_format == "json":
        deliver(json_text(_inspection(document, tensors)), None)
    else:
        deliver(guard_lines("\n".join(_lines(document, tensors))) + "\n", None)
    return CLEAN


def _matches(pattern: str, name: str, record: TensorRecord) -> bool:
    return any(fnmatchcase(known, pattern) for known in (name, *record.aliases))


def _inspection(document: ManifestDocument, tensors: dict[str, TensorRecord]) -> dict[str, Any]:
    return {
        "schema": "weightguard-inspection-v1",
        "manifest_schema": document.schema,
        "digest_algorithm": document.digest_algorithm,
        "weights": document.weights,
        "tensors_total": len(document.tensors),
        "tensors": tensors,
        "files": document.files,
        "super_weights": document.salience.super_weights,
        "calibration": document.calibration,
    }


def _lines(document: ManifestDocument, tensors: dict[str, TensorRecord]) -> Iterator[str]:
    from weightguard.units import byte_size, counted
    from weightguard_cli.calibration_text import calibration_lines
    from weightguard_cli.escape import escape_name
    from weightguard_cli.table import table_lines

    total = counted(len(document.tensors), "tensor")
    yield f"{document.schema}: {total}, digests {document.digest_algorithm}"
    yield f"weights {document.weights}"
    for name, file in sorted(document.files.items()):
        yield f"file {file.sha256} {byte_size(file.size)} {escape_name(name)}"
    yield ""
    yield from table_lines([_HEADINGS, *(_row(name, record) for name, record in tensors.items())])
    if len(tensors) < len(document.tensors):
        yield f"{len(tensors)} of {total} shown"
    if document.calibration is not None:
        yield ""
        yield from calibration_lines(document)


_HEADINGS = ("dtype", "shape", "min", "max", "rms", "zero", "nan", "inf", "digest", "name")


def _row(name: str, record: TensorRecord) -> tuple[str, ...]:
    from weightguard_cli.escape import escape_name

    statistics = record.statistics
    names = " = ".join(escape_name(known) for known in (name, *record.aliases[:8]))
    return (
        record.dtype,
        "x".join(map(str, record.shape)) or "scalar",
        _number(statistics.min),
        _number(statistics.max),
        f"{statistics.rms:.4g}",
        str(statistics.zero),
        str(statistics.nan),
        str(statistics.inf),
        record.digest.partition(":")[2][:DIGEST_DIGITS],
        names,
    )


def _number(value: ExactValue | None) -> str:
    return "-" if value is None else f"{value.value:.4g}"
