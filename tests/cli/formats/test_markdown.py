"""Markdown: the verdict, the findings, and no markup that a name brought along."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.reports import AUDIT, HOSTILE, REPORTS, clean, damaged, hostile, large
from weightguard_cli.formats import render
from weightguard_cli.formats.markdown import code, prose

GITHUB_LIMIT = 1 << 20


def readers_view(text: str) -> str:
    """Return HTML as a CommonMark reader with tables makes it, raw HTML escaped."""
    return str(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))


@pytest.mark.parametrize("kind", REPORTS)
def test_the_verdict_comes_first(kind: str, tmp_path: Path) -> None:
    mark, heading = render("markdown", REPORTS[kind](tmp_path), AUDIT).splitlines()[:2]
    assert mark == "<!-- weightguard report -->"
    assert heading.startswith("## ")
    word = {"clean": "SOUND", "unreadable": "UNREADABLE"}.get(kind, "DAMAGED")
    assert f" {word}: " in heading


def test_findings_show_place_evidence_and_remedy(tmp_path: Path) -> None:
    text = render("markdown", damaged(tmp_path), AUDIT)
    assert "| critical | WG401 tensor-changed | 3 |" in text
    assert "`model.layers.1.mlp.up_proj.weight[3,5] in model.safetensors at byte " in text
    assert "**Do:** Restore the tensor from a trusted copy" in text


@pytest.mark.parametrize("text", [HOSTILE, "`", "``", " a ", "a`", "|", "\\", "_x_*y*~z~", "<b>"])
def test_nothing_in_a_name_or_a_message_has_a_meaning(text: str) -> None:
    for shown in (code(text), prose(text)):
        view = readers_view(f"| a |\n|---|\n| {shown} |\n")
        assert view.count("<td>") == 1
        for tag in ("<a ", "<img", "<script", "<em>", "<strong>", "<h1", "<s>"):
            assert tag not in view
        assert "\n" not in shown


def test_a_hostile_report_has_only_our_markup(tmp_path: Path) -> None:
    text = render("markdown", hostile(tmp_path), AUDIT)
    view = readers_view(text)
    assert "<a " not in view
    assert "<img" not in view
    assert "\x1b" not in text
    assert not any(line.lstrip().startswith("::") for line in text.splitlines())


def test_a_large_report_fits_a_job_summary() -> None:
    text = render("markdown", large(), AUDIT)
    assert len(text.encode()) < GITHUB_LIMIT
    assert "10,000" not in text
    assert "more (`--format json` has them all)" in text


def test_a_sound_report_is_short(tmp_path: Path) -> None:
    assert len(render("markdown", clean(tmp_path), AUDIT).splitlines()) < 15
