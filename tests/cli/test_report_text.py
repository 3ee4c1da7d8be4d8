"""What people read: verdict, places, evidence, remedies, and what was not checked."""

from __future__ import annotations

import re

import msgspec
import pytest

from weightguard.catalogue import Severity
from weightguard.finding import (
    Coverage,
    FileBeside,
    FilesBeside,
    Finding,
    Report,
    finding,
    ordered,
)
from weightguard.ranges import TensorRange
from weightguard_cli.formats.text import MAX_SHOWN, report_text
from weightguard_cli.style import Style
from weightguard_cli.verdict import Scope, verdict

AUDIT = Scope(against_manifest=False)
VERIFY = Scope(against_manifest=True)
HOSTILE = "\x1b[31m\n::error::x|<script>\u202e##[error]\ud800" + "y" * 1_000_000


def report(*findings: Finding, complete: bool = True, tensors: int = 272) -> Report:
    coverage = Coverage(tensors, tensors, 94_000_000, 98_000_000)
    ranges = tuple(
        TensorRange(name, "F16", (4, 64), 512, "model.gguf", 0, -1.0, 1.0, 1.0, 0.5, 0, 0, 0)
        for name in ("a", "b", "blk.0.weight")
    )
    return Report("model.gguf", "gguf", complete, ordered(findings), coverage, ranges=ranges)


def changed_element() -> Finding:
    return finding(
        "WG401",
        "one element changed",
        file="model.gguf",
        offset=12345,
        tensor="blk.0.weight",
        block=0,
        row=3,
        element=(3, 17),
        evidence={
            "expected": "blake3:aa",
            "observed": "blake3:bb",
            "element_count": 1,
            "elements": [
                {
                    "index": [3, 17],
                    "old_bits": "0x3800",
                    "new_bits": "0x7800",
                    "flipped_bits": [14],
                    "confirmed": True,
                    "old": "0.5",
                    "new": "32768.0",
                }
            ],
        },
    )


@pytest.mark.parametrize(
    ("findings", "scope", "expected"),
    [
        ((), AUDIT, "SOUND: no findings"),
        ((), VERIFY, "EQUAL: all 272 tensors are those of the manifest"),
        (
            (finding("WG201", "NaN", tensor="a"), finding("WG202", "Inf", tensor="a")),
            AUDIT,
            "DAMAGED: 2 critical findings in 1 of 272 tensors",
        ),
        (
            (finding("WG201", "NaN", tensor="a"), finding("WG203", "zero", tensor="b")),
            AUDIT,
            "DAMAGED: 1 critical and 1 error findings in 2 of 272 tensors",
        ),
        (
            (finding("WG402", "gone", tensor="c"), finding("WG401", "other", tensor="a")),
            VERIFY,
            "DIFFERENT: 2 critical findings in 2 tensors",
        ),
        ((changed_element(),), VERIFY, "DIFFERENT: 1 critical finding in 1 of 272 tensors"),
        ((finding("WG121", "extra"),), AUDIT, "SUSPECT: 1 warning finding"),
        ((finding("WG123", "journal"),), VERIFY, "UNFINISHED: 1 error finding"),
        ((finding("WG119", "sparse"),), AUDIT, "UNSUPPORTED: 1 error finding"),
        (
            (finding("WG408", "untied", tensor="a"),),
            AUDIT,
            "SOUND: nothing above info, 1 info finding in 1 of 272 tensors",
        ),
    ],
)
def test_the_verdict_comes_first(
    findings: tuple[Finding, ...], scope: Scope, expected: str
) -> None:
    assert str(verdict(report(*findings), scope)) == expected
    assert report_text(report(*findings), scope, Style()).splitlines()[0] == expected


def test_an_unreadable_checkpoint_is_never_called_sound() -> None:
    unreadable = report(finding("WG102", "short"), complete=False, tensors=0)
    text = report_text(unreadable, AUDIT, Style())
    assert text.startswith("UNREADABLE: 1 error finding\n")
    assert "Not checked:\n  - whatever comes after the point where reading had to stop\n" in text
    assert "Checked" not in text


def test_a_finding_shows_place_evidence_and_remedy() -> None:
    text = report_text(report(changed_element()), VERIFY, Style())
    assert "critical WG401 tensor-changed\n" in text
    assert "  blk.0.weight[3,17] (residue row 3, block 0) in model.gguf at byte 12345\n" in text
    assert "[3,17] 0.5 -> 32768.0 (0x3800 -> 0x7800), bit 14 flipped\n" in text
    assert "Do: Restore the tensor from a trusted copy" in text


def test_an_unconfirmed_change_says_so() -> None:
    found = changed_element()
    found.evidence["elements"][0]["confirmed"] = False
    text = report_text(report(found), VERIFY, Style())
    assert "consistent with the row's residues only" in text


def test_a_changed_word_of_a_block_has_bits_and_no_values() -> None:
    found = changed_element()
    for value in ("old", "new"):
        del found.evidence["elements"][0][value]
    text = report_text(report(found), VERIFY, Style())
    assert "[3,17] 0x3800 -> 0x7800, bit 14 flipped\n" in text


def test_elements_without_values_share_a_line() -> None:
    evidence = {"count": 32, "elements": [[0, i] for i in range(16)]}
    text = report_text(report(finding("WG201", "m", tensor="t", evidence=evidence)), AUDIT, Style())
    assert "      [0,0] [0,1] [0,2] [0,3] [0,4] [0,5] [0,6] [0,7] and 24 more elements\n" in text


def test_values_stand_beside_their_elements_and_the_rest_is_counted() -> None:
    evidence = {
        "count": 18,
        "elements": [[0, i] for i in range(16)],
        "values": [4500.0 + i for i in range(16)],
        "others_below": 0.125,
    }
    text = report_text(report(finding("WG207", "m", tensor="t", evidence=evidence)), AUDIT, Style())
    assert "[0,0] = 4500\n" in text
    assert "and 10 more elements" in text
    assert "others below: 0.125" in text


def test_lists_that_were_cut_are_counted_in_full() -> None:
    evidence = {"block_count": 1, "blocks": [0], "row_count": 512, "rows": list(range(64))}
    text = report_text(report(finding("WG401", "m", evidence=evidence)), VERIFY, Style())
    assert "residue rows: 0, 1, 2, 3, 4, 5, 6, 7 and 504 more\n" in text
    evidence = {"count": 100, "rows": list(range(16))}
    text = report_text(report(finding("WG205", "m", evidence=evidence)), AUDIT, Style())
    assert "      rows: 0, 1, 2, 3, 4, 5, 6, 7 and 92 more\n" in text


def test_one_tensor_is_not_all_of_them() -> None:
    assert str(verdict(report(tensors=1), VERIFY)) == (
        "EQUAL: the one tensor is that of the manifest"
    )


def test_an_empty_name_can_be_seen() -> None:
    text = report_text(report(finding("WG204", "m", tensor="", file="f")), AUDIT, Style())
    assert "\n  '' in f\n" in text


def test_a_remedy_that_findings_share_is_said_once() -> None:
    twice = [finding("WG403", "extra", tensor=name) for name in ("a", "b")]
    assert report_text(report(*twice), VERIFY, Style()).count("Do: ") == 1


def test_many_findings_of_one_rule_are_cut_and_counted() -> None:
    many = [finding("WG403", "extra", tensor=f"t{i:03}") for i in range(MAX_SHOWN + 7)]
    text = report_text(report(*many), VERIFY, Style())
    assert f"t{MAX_SHOWN - 1:03}\n" in text
    assert f"t{MAX_SHOWN:03}" not in text
    assert "and 7 more (use --format json)" in text


def test_what_was_not_checked_is_always_said() -> None:
    text = report_text(report(), Scope(False, ("equality",)), Style())
    assert text.endswith(
        "Checked 272 of 272 tensors, 94.0 MB of 98.0 MB.\nNot checked:\n  - equality\n"
    )


@pytest.mark.parametrize("width", [None, 40, 120])
@pytest.mark.parametrize("severity", list(Severity))
def test_hostile_strings_in_every_field_are_harmless(width: int | None, severity: Severity) -> None:
    hostile = finding(
        "WG401",
        HOSTILE,
        remedy=HOSTILE,
        severity=severity,
        evidence={HOSTILE: HOSTILE, "list": [HOSTILE], "elements": [{"index": HOSTILE}]},
        file=HOSTILE,
        tensor=HOSTILE,
    )
    base = report(hostile)
    bad = Report(HOSTILE, HOSTILE, True, base.findings, base.coverage)
    text = report_text(bad, AUDIT, Style(width=width))
    lines = text.splitlines()
    assert text.isascii()
    assert all(line.isprintable() for line in lines)
    assert not any(line.strip().startswith(("::", "##[")) for line in lines)
    assert not re.search(r"<script|##\[|\|", text)
    assert len(text) < 40_000


def test_wrapping_keeps_to_the_width_but_never_breaks_a_word() -> None:
    long = finding("WG121", "word " * 40 + "x" * 90, tensor="t")
    lines = report_text(report(long), AUDIT, Style(width=60)).splitlines()
    assert all(len(line) <= 60 for line in lines if "x" * 90 not in line)
    assert any("x" * 90 in line for line in lines)


def test_colours_only_when_asked() -> None:
    assert "\x1b[" not in report_text(report(changed_element()), VERIFY, Style())
    assert "\x1b[" in report_text(report(changed_element()), VERIFY, Style(coloured=True, width=80))


def test_markup_of_the_terminal_library_is_not_interpreted() -> None:
    text = report_text(report(finding("WG403", "m", tensor="[bold red]t[/]")), VERIFY, Style())
    assert "[bold red]t[/]" in text


@pytest.mark.parametrize(
    ("rules", "scope", "expected"),
    [
        (["WG119"], AUDIT, "UNSUPPORTED: 2 of 5 tensors could not be read"),
        (["WG119", "WG108"], VERIFY, "UNSUPPORTED: 2 of 5 tensors could not be read"),
        (["WG119", "WG113"], AUDIT, "DAMAGED: 1 critical and 1 error findings"),
        (["WG119", "WG401"], VERIFY, "DIFFERENT: 1 critical and 1 error findings"),
        ([], VERIFY, "EQUAL: all 3 tensors that can be read are those of the manifest"),
    ],
)
def test_what_cannot_be_read_is_not_called_damaged(
    rules: list[str], scope: Scope, expected: str
) -> None:
    findings = ordered(finding(rule, "m") for rule in rules)
    partly = Report("m", "torch", True, findings, Coverage(3, 5, 1, 1, tensors_unread=2))
    text = report_text(partly, scope, Style())
    assert text.splitlines()[0] == expected
    assert "Checked 3 of 5 tensors, 1 byte of 1 byte; 2 tensors more of unknown size." in text


def test_files_beside_the_checkpoint_are_named_by_kind() -> None:
    names = [f"{n}.bin" for n in range(7)]
    files = (
        FileBeside("optimizer.pt", "training"),
        FileBeside("original", "folder"),
        *(FileBeside(name, "pickle") for name in names),
        FileBeside(HOSTILE, "variant"),
    )
    sound = msgspec.structs.replace(report(), not_read=FilesBeside(1000, files))
    lines = report_text(sound, AUDIT, Style()).splitlines()
    start = lines.index("Not checked:") + 1
    assert lines[start].startswith(
        "  - 0.bin, 1.bin, 2.bin, 3.bin, 4.bin and 2 more: which loaders"
    )
    assert lines[start + 1].startswith("  - \\x1b[31m")
    assert lines[start + 2].startswith("  - original/: with weight files")
    assert lines[start + 3].startswith("  - optimizer.pt: a trainer's state")
    assert lines[start + 4 :] == ["  - 990 more files beside the checkpoint"]
