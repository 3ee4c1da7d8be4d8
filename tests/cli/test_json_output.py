"""JSON is ASCII, exact, deterministic, and safe to paste."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightguard.finding import Coverage, Report, finding
from weightguard_cli.json_output import json_text

HOSTILE = "\x1b[31m\n::error|<script>&\u202e##[error]###\ud800\x7f\x9b"


def report(name: str) -> Report:
    found = finding("WG115", "named oddly", tensor=name, evidence={"name": name, "b": 1, "a": 2})
    return Report("m", "gguf", True, (found,), Coverage(1, 1, 2, 2))


def test_names_come_back_exactly_from_harmless_ascii() -> None:
    text = json_text(report(HOSTILE))
    assert text.isascii()
    assert all(line.isprintable() for line in text.splitlines())
    assert not any(mark in text for mark in ("<", ">", "&", "|", "##"))
    assert not any(line.strip().startswith("::") for line in text.splitlines())
    read = json.loads(text)
    assert read["findings"][0]["location"]["tensor"] == HOSTILE
    assert read["findings"][0]["evidence"]["name"] == HOSTILE


@given(st.text(st.characters()))
def test_any_name_survives(name: str) -> None:
    # a surrogate pair written as two escapes is read back as the one character it encodes
    expected = name.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    assert json.loads(json_text({"name": name}))["name"] == expected


def test_a_name_of_a_megabyte_is_whole() -> None:
    name = "n" * 1_000_000
    assert json.loads(json_text(report(name)))["findings"][0]["location"]["tensor"] == name


def test_keys_are_sorted_and_the_schema_is_named() -> None:
    text = json_text(report("t"))
    assert text == json_text(report("t"))
    read = json.loads(text)
    assert read["schema"] == "weightguard-report-v1"
    assert list(read) == sorted(read)
    assert list(read["findings"][0]["evidence"]) == ["a", "b", "name"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_words(value: float) -> None:
    assert json.loads(json_text({"v": [value]}))["v"] == [repr(value)]
