"""Tensors of several files under unique names."""

from __future__ import annotations

from weightguard.checkpoint.union import unite
from weightguard.tensor import DTYPES, TensorView


class Nothing:
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Hold no bytes."""


def view(name: str, *aliases: str, shard: str = "1") -> TensorView:
    return TensorView(name, DTYPES["U8"], (0,), shard, 0, Nothing(), aliases)


def test_aliases_are_united_too() -> None:
    files = {"1": [view("a", "b"), view("c")], "2": [view("b", "d"), view("e", "c")]}
    tensors, findings = unite(files, {"c": "2"})
    assert [(t.name, t.aliases) for t in tensors] == [
        ("a", ("b",)),
        ("d", ()),
        ("e", ("c",)),
    ]
    assert [(f.rule, f.location.file, f.location.tensor) for f in findings] == [
        ("WG104", "1", "c"),
        ("WG104", "2", "b"),
    ]
