"""JUnit XML for test reports: a case for each tensor, and one for each rule beyond tensors.

Findings from ``--fail-on`` up are failures, an unreadable checkpoint is an error, and what is less
severe is told as output. XML has no form for control characters; names show them as escapes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from weightguard.catalogue import RULES
from weightguard.finding import Finding, Report
from weightguard_cli.account import Case, plain_lines
from weightguard_cli.beside_text import unchecked_lines
from weightguard_cli.escape import escape_name, escape_text
from weightguard_cli.evidence import evidence_lines
from weightguard_cli.place import place
from weightguard_cli.presentation import Presentation

DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
MAX_SOUND = 5_000
"""Tensors without a finding that have a case of their own; one more case stands for the rest."""
MAX_FINDINGS = 20
"""Findings that are written out of one case."""

# what XML 1.0 has no form for; escapes leave none of it in names, but libraries quote
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report, presentation: Presentation) -> str:
    """Return one test suite, named after the command and the checkpoint."""
    suite = TestSuite(f"weightguard {presentation.task} {escape_name(report.checkpoint)}")
    # one by one they are counted again each time, which takes quadratic time
    suite.add_testcases([*_cases(report, presentation)])
    document = JUnitXml(f"weightguard {presentation.task}")
    document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    text: bytes = document.tostring()  # type: ignore[no-untyped-call]
    body = text.decode("utf-8")
    return body if body.startswith("<?xml") else f"{DECLARATION}{body}\n"


def _cases(report: Report, presentation: Presentation) -> Iterator[TestCase]:
    by_tensor: dict[str, list[Finding]] = defaultdict(list)
    by_rule: dict[str, list[Finding]] = defaultdict(list)
    for found in report.findings:
        if found.location.tensor is not None:
            by_tensor[found.location.tensor].append(found)
        else:
            by_rule[found.rule].append(found)
    yield _verdict_case(report, presentation)
    for code, findings in by_rule.items():
        rule = RULES.get(code)
        name = code + (f" {rule.name}" if rule else "")
        yield _case(Case(name, "checkpoint", ""), findings, presentation)
    account = presentation.account
    listed = account.cases if account else ()
    listed = listed or tuple(Case(tensor.name, tensor.file, "") for tensor in report.ranges)
    yield from _tensors(listed, by_tensor, presentation)


def _tensors(
    listed: tuple[Case, ...], findings: dict[str, list[Finding]], presentation: Presentation
) -> Iterator[TestCase]:
    known = {tensor.name: tensor for tensor in listed}
    for name, found in findings.items():
        file = found[0].location.file or "checkpoint"
        yield _case(known.get(name) or Case(name, file, ""), found, presentation)
    sound = [tensor for tensor in listed if tensor.name not in findings]
    for tensor in sound[:MAX_SOUND]:
        yield _case(tensor, [], presentation)
    if len(sound) > MAX_SOUND:
        rest = f"{len(sound) - MAX_SOUND:,} more tensors without a finding"
        yield _case(Case(rest, "checkpoint", ""), [], presentation)


def _verdict_case(report: Report, presentation: Presentation) -> TestCase:
    """Return the case that fails when the checkpoint could not be read to its end."""
    case = TestCase("read to its end", "checkpoint")
    said = str(presentation.verdict(report))
    told = [said, *(plain_lines(presentation.account) if presentation.account else ())]
    told += [f"Not checked: {line}" for line in unchecked_lines(report, presentation.scope)]
    case.system_out = _legal("\n".join(told))
    if not report.complete:
        case.result = [Error(said, "UNREADABLE")]
    return case


def _case(subject: Case, findings: list[Finding], presentation: Presentation) -> TestCase:
    case = TestCase(escape_name(subject.name), escape_name(subject.file))
    failing = [found for found in findings if found.level >= presentation.fail_on]
    told = [found for found in findings if found.level < presentation.fail_on]
    if failing:
        more = f" and {len(failing) - 1:,} more" if len(failing) > 1 else ""
        rule = escape_text(failing[0].rule)
        summary = f"{rule}: {escape_text(failing[0].message)}{more}"
        failure = Failure(_legal(summary), rule)
        failure.text = _legal("\n\n".join(_told(failing)))
        case.result = [failure]
    words = "\n\n".join(filter(None, [subject.words, *_told(told)]))
    if words:
        case.system_out = _legal(words)
    return case


def _told(findings: list[Finding]) -> Iterator[str]:
    for found in findings[:MAX_FINDINGS]:
        lines = [
            f"{found.severity} {escape_text(found.rule)}: {escape_text(found.message)}",
            place(found),
        ]
        lines += [*evidence_lines(found.evidence), f"Do: {escape_text(found.remedy)}"]
        yield "\n".join(filter(None, lines))
    if len(findings) > MAX_FINDINGS:
        yield f"and {len(findings) - MAX_FINDINGS:,} more (--format json has them all)"


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)
