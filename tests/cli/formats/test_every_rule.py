"""A finding of every rule, made by its example, is told in every format, and nothing is lost."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from tests.cli.formats.test_markdown import readers_view
from tests.cli.formats.test_sarif import VALIDATOR
from tests.rule_examples import REAL, told
from weightguard import Finding
from weightguard.catalogue import RULES
from weightguard_cli.escape import escape_text
from weightguard_cli.evidence import evidence_lines
from weightguard_cli.formats import FORMATS, render
from weightguard_cli.json_output import json_text


class _Text(HTMLParser):
    """Collects what a reader sees of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def seen(page: str) -> str:
    reader = _Text()
    reader.feed(page)
    reader.close()
    return "".join(reader.parts)


def words_of(output_format: str, output: str) -> str:
    """Return all that a valid output says, as one line."""
    if output_format == "sarif":
        document = json.loads(output)
        VALIDATOR.validate(document)
        results = document["runs"][0]["results"]
        text = "\n".join(f"{r['ruleId']} {r['message']['text']}" for r in results)
    elif output_format == "junit":
        root = ET.fromstring(output.encode())
        said = [value for element in root.iter() for value in element.attrib.values()]
        text = "\n".join([*said, *root.itertext()])
    elif output_format == "markdown":
        # raw HTML comes out escaped, so that it is seen and unescaped once more
        text = html.unescape(seen(readers_view(output)))
    else:
        text = seen(output) if output_format == "html" else output
    return flat(text)


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize(
    "code", [pytest.param(c, marks=pytest.mark.real if c in REAL else ()) for c in RULES]
)
def test_every_format_tells_code_message_evidence_and_remedy(code: str) -> None:
    example = told(code)
    found = next(f for f in example.report.findings if f.rule == code)
    for output_format in FORMATS:
        output = render(output_format, example.report, example.presentation)
        assert output == render(output_format, example.report, example.presentation)
        if output_format == "json":
            assert as_json(found) in json.loads(output)["findings"]
            continue
        text = words_of(output_format, output)
        lines = [*evidence_lines(found.evidence)][:8]
        # a group of findings shares one remedy, which SARIF repeats
        for expected in (code, escape_text(found.message), escape_text(found.remedy), *lines):
            assert flat(expected) in text, f"{output_format} loses {expected!r}"


def as_json(found: Finding) -> object:
    return json.loads(json_text(found))


@pytest.mark.parametrize(
    "code", [pytest.param(c, marks=pytest.mark.real if c in REAL else ()) for c in RULES]
)
def test_a_key_of_evidence_means_one_thing(code: str) -> None:
    for found in told(code).report.findings:
        for key in ("elements", "values", "blocks", "rows"):
            assert isinstance(found.evidence.get(key, []), list), f"{found.rule} counts in {key}"
