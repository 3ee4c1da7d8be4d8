"""One set of tensors from several files: names unique, what lies twice reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from weightguard.checkpoint.names import shown
from weightguard.finding import Finding, finding
from weightguard.tensor import TensorView
from weightguard.units import counted


def unite(
    files: Mapping[str, Iterable[TensorView]], listed: Mapping[str, str]
) -> tuple[tuple[TensorView, ...], tuple[Finding, ...]]:
    """Return the tensors of ``files`` with unique names and aliases, in the order of the files.

    A name in several files is kept where ``listed`` (tensor name to file) places it, else in the
    first of them. Each file that repeats names gives one WG104.
    """
    homes = _homes(files, listed)
    taken: set[str] = set()
    united: list[TensorView] = []
    findings: list[Finding] = []
    for file, tensors in files.items():
        repeated: list[tuple[str, TensorView]] = []
        for tensor in tensors:
            names = (tensor.name, *tensor.aliases)
            kept = tuple(n for n in names if homes[n] == file and n not in taken)
            taken.update(kept)
            if kept == names:
                united.append(tensor)
                continue
            repeated += ((name, tensor) for name in names if name not in kept)
            if kept:
                united.append(replace(tensor, name=kept[0], aliases=kept[1:]))
        if repeated:
            findings.append(_repetition(file, repeated))
    return tuple(united), tuple(findings)


def _homes(files: Mapping[str, Iterable[TensorView]], listed: Mapping[str, str]) -> dict[str, str]:
    """Return for each name the file whose tensor is kept."""
    homes: dict[str, str] = {}
    for file, tensors in files.items():
        for tensor in tensors:
            for name in (tensor.name, *tensor.aliases):
                if name not in homes or listed.get(name) == file:
                    homes[name] = file
    return homes


def _repetition(file: str, repeated: list[tuple[str, TensorView]]) -> Finding:
    name, tensor = repeated[0]
    count = counted(len(repeated), "tensor")
    return finding(
        "WG104",
        f"{count} of {shown(file)} with a name that is read from elsewhere: {shown(name)} first",
        file=file,
        offset=tensor.offset,
        tensor=name,
        evidence={"tensors": len(repeated)},
        remedy="Keep one copy of each tensor; loaders do not agree on which of them counts.",
    )
