"""``weightguard rules`` lists and explains the catalogue."""

from __future__ import annotations

import json

import pytest

from tests.rule_examples import PAGES
from weightguard.catalogue import RULES
from weightguard_cli.main import main


def test_every_rule_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RULES)


def test_one_rule_has_its_page_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "wg201"]) == 0
    assert capsys.readouterr().out == (PAGES / "WG201.md").read_text("utf-8")


def test_a_prefix_tells_of_several_why_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "WG20"]) == 0
    text = capsys.readouterr().out
    rule = RULES["WG201"]
    assert text.startswith("WG201 nan (critical)\n")
    assert rule.why in text
    assert rule.remedy in text


def test_a_prefix_explains_its_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "WG4", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "weightguard-rules-v1"
    assert [rule["code"] for rule in document["rules"]] == [c for c in RULES if c[:3] == "WG4"]


def test_an_unknown_code_names_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rules", "WG2O1"]) == 2
    assert "weightguard rules" in capsys.readouterr().err
