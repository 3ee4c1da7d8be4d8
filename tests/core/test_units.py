"""Counts and sizes in words."""

from __future__ import annotations

import pytest

from weightguard.units import byte_size, counted, listed


@pytest.mark.parametrize(
    ("number", "noun", "words"),
    [
        (1, "tensor", "1 tensor"),
        (0, "tensor", "0 tensors"),
        (12_345, "byte", "12,345 bytes"),
        (1, "entry", "1 entry"),
        (2, "entry", "2 entries"),
        (2, "infinity", "2 infinities"),
        (2, "array", "2 arrays"),
    ],
)
def test_counts_agree_with_their_nouns(number: int, noun: str, words: str) -> None:
    assert counted(number, noun) == words


def test_sizes_are_decimal() -> None:
    assert [byte_size(n) for n in (1, 999, 1000, 98_400_000)] == [
        "1 byte", "999 bytes", "1.0 kB", "98.4 MB"
    ]  # fmt: skip


def test_words_are_joined_as_in_a_sentence() -> None:
    assert [listed([]), listed(["a"]), listed(["a", "b", "c"])] == ["", "a", "a, b and c"]
