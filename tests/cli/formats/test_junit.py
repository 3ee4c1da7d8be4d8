"""JUnit XML: well-formed whatever names hold, a case for each tensor, failures that count."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from junitparser import JUnitXml

from tests.reports import AUDIT, REPORTS, clean, damaged, hostile, large, unreadable
from weightguard import Report
from weightguard.catalogue import Severity
from weightguard_cli.formats import render
from weightguard_cli.formats.junit import MAX_SOUND


def suite_of(report: Report, fail_on: Severity = Severity.ERROR) -> ET.Element:
    presentation = type(AUDIT)("audit", AUDIT.scope, fail_on)
    root = ET.fromstring(render("junit", report, presentation).encode())
    assert root.tag == "testsuites"
    (suite,) = root
    cases = [*suite.iter("testcase")]
    for count, tag in (("failures", "failure"), ("errors", "error")):
        assert int(suite.attrib[count]) == len([*suite.iter(tag)])
        assert root.attrib[count] == suite.attrib[count]
    assert int(suite.attrib["tests"]) == len(cases)
    return suite


@pytest.mark.parametrize("kind", REPORTS)
def test_another_reader_counts_the_same(kind: str, tmp_path: Path) -> None:
    report = REPORTS[kind](tmp_path)
    suite_of(report)
    parsed = JUnitXml.fromstring(render("junit", report, AUDIT).encode())
    assert parsed.tests == sum(1 for suite in parsed for _ in suite)


def test_every_tensor_has_a_case(tmp_path: Path) -> None:
    report = clean(tmp_path)
    names = {case.attrib["name"] for case in suite_of(report).iter("testcase")}
    assert {tensor.name for tensor in report.ranges} <= names


def test_failures_follow_fail_on(tmp_path: Path) -> None:
    report = damaged(tmp_path)
    for level in Severity:
        tensors = {f.location.tensor for f in report.at_least(level)}
        assert len([*suite_of(report, level).iter("failure")]) == len(tensors)


def test_an_unreadable_checkpoint_is_an_error(tmp_path: Path) -> None:
    (error,) = suite_of(unreadable(tmp_path)).iter("error")
    assert error.attrib["message"].startswith("UNREADABLE")


def test_names_and_messages_cannot_break_out(tmp_path: Path) -> None:
    text = render("junit", hostile(tmp_path), AUDIT)
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    assert "<script" not in text
    assert "::error" not in "".join(line for line in text.splitlines() if line.startswith(":"))


def test_characters_without_a_form_in_xml_are_replaced(tmp_path: Path) -> None:
    report = hostile(tmp_path)
    odd = msgspec.structs.replace(report.findings[0], message="a\ufffeb\ud800c", rule="WG\x01")
    suite_of(msgspec.structs.replace(report, findings=(odd,)))


def test_sound_tensors_beyond_the_limit_share_a_case() -> None:
    report = large()
    many = msgspec.structs.replace(report, findings=(), ranges=report.ranges * 6)
    cases = [*suite_of(many).iter("testcase")]
    assert len(cases) == 1 + MAX_SOUND + 1
    assert cases[-1].attrib["name"] == "1,000 more tensors without a finding"
