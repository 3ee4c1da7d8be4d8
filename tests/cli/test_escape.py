"""Hostile strings lose their power and stay recognisable."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightguard_cli.escape import NAME_LIMIT, escape_name, escape_text, guard_lines

COMMAND_LINE = re.compile(r"^\s*::", re.MULTILINE)


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("plain.weight", "plain.weight"),
        ("onnx::MatMul_12", "onnx::MatMul_12"),
        ("größe.重み", "größe.重み"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\nb\r\tc\0", r"a\x0ab\x0d\x09c\x00"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("a\u2028b\u2029\u200b\ufeff", r"a\u2028b\u2029\u200b\ufeff"),
        ("\udc80\ud800", r"\udc80\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("::error file=x::boo", r"\x3a:error file=x::boo"),
        ("  ::error", r"  \x3a:error"),
        ("x ##[error]boo", r"x \x23#[error]boo"),
        ("##vso[task]", r"\x23#vso[task]"),
        ("<script>alert(1)</script>", r"\x3cscript>alert(1)\x3c/script>"),
        ("a | b", r"a \x7c b"),
        ("[red]not markup[/red]", "[red]not markup[/red]"),
        ("back\\slash", r"back\\slash"),
    ],
)
def test_a_name_is_shown_harmless(hostile: str, shown: str) -> None:
    assert escape_name(hostile) == shown


def test_names_that_differ_are_shown_differently() -> None:
    assert escape_name("\x1b") != escape_name("\\x1b")


def test_a_message_keeps_its_backslashes() -> None:
    assert escape_text("tensor 'a\\x1b' is \x1b") == r"tensor 'a\x1b' is \x1b"


def test_a_name_of_a_megabyte_is_cut_in_the_middle() -> None:
    shown = escape_name("A" + "x" * 1_000_000 + "Z")
    assert shown.startswith("Axx")
    assert shown.endswith("xxZ")
    assert f"{1_000_002 - NAME_LIMIT} more characters" in shown
    assert len(shown) < NAME_LIMIT + 50


def test_a_name_at_the_limit_is_whole() -> None:
    assert escape_name("n" * NAME_LIMIT) == "n" * NAME_LIMIT


@given(st.text(st.characters(), max_size=400))
def test_whatever_comes_is_one_printable_line_without_commands(text: str) -> None:
    for shown in (escape_name(text), escape_text(text)):
        assert shown.isprintable()
        assert "##" not in shown
        assert "|" not in shown
        assert not COMMAND_LINE.search(shown)


def test_lines_are_guarded_wherever_a_command_could_begin() -> None:
    assert guard_lines("ok\n  ::error\n::stop") == "ok\n  \\x3a:error\n\\x3a:stop"
