"""0 clean, 1 findings, 2 could not complete, 130 interrupted; one line and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weightguard.catalogue import Severity
from weightguard.errors import ManifestError, malformed
from weightguard.finding import Coverage, Report, finding
from weightguard_cli.main import main

MODULE = [sys.executable, "-m", "weightguard_cli"]


def report(*severities: Severity, complete: bool = True) -> Report:
    findings = tuple(finding("WG201", "m", tensor="t", severity=s) for s in severities)
    return Report("m", "gguf", complete, findings, Coverage(1, 1, 2, 2))


@pytest.fixture
def audits_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[Report | BaseException], None]:
    """Make the core's audit return a report, or raise."""

    def install(outcome: Report | BaseException) -> None:
        def audit(*args: Any, **options: Any) -> Report:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr("weightguard.audit", audit, raising=False)

    return install


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that stderr must hold while stdout is empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("weightguard: ")
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["audit"],
        ["audit", ""],
        ["audit", "x", "--manifest", ""],
        ["audit", "x", "-o", ""],
        ["verify", "", "m"],
        ["manifest", "", "-o", "m"],
        ["inspect", ""],
        ["audit", "x", "--fail-on", "loud"],
        ["audit", "x", "--threads", "0"],
        ["audit", "x", "--select", "WG1,,WG2"],
        ["audit", "x", "--no-such-option"],
        ["manifest", "x"],
        ["rules", "WG9999"],
        ["rules", "WG101", "extra\x1b[31m"],
        ["inspect", "/nonexistent/m.json"],
        ["verify", "x", "/nonexistent/m.json"],
    ],
)
def test_wrong_usage_is_2_and_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert only_line(capsys).isprintable()


def test_no_command_shows_the_help_and_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: weightguard" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["audit", "--help"], ["rules"]])
def test_being_asked_is_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fail_on", list(Severity))
@pytest.mark.parametrize("severity", list(Severity))
def test_findings_count_from_fail_on_upwards(
    fail_on: Severity, severity: Severity, audits_to: Callable[..., None]
) -> None:
    audits_to(report(severity))
    expected = 1 if severity >= fail_on else 0
    assert main(["audit", "x", "--fail-on", fail_on.label]) == expected


def test_the_default_is_to_fail_on_errors(audits_to: Callable[..., None]) -> None:
    audits_to(report(Severity.WARNING))
    assert main(["audit", "x"]) == 0
    audits_to(report(Severity.ERROR))
    assert main(["audit", "x"]) == 1


def test_an_incomplete_report_is_2_whatever_it_found(audits_to: Callable[..., None]) -> None:
    for severities in ((), (Severity.INFO,), (Severity.CRITICAL,)):
        audits_to(report(*severities, complete=False))
        assert main(["audit", "x", "--fail-on", "critical"]) == 2


def test_an_interrupt_is_130(
    audits_to: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    audits_to(KeyboardInterrupt())
    assert main(["audit", "x"]) == 130
    assert only_line(capsys) == "weightguard: interrupted"


def test_a_real_signal_is_130() -> None:
    program = (
        "import os, signal, sys, weightguard\n"
        "weightguard.audit = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
        "from weightguard_cli.main import main\n"
        "sys.exit(main(['audit', 'x']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"weightguard: interrupted\n")


@pytest.mark.parametrize("module", ["io", "warnings", "click", "weightguard_cli.group", "numpy"])
def test_an_interrupt_while_modules_load_is_130(module: str) -> None:
    program = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            sys.meta_path.remove(self)\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "from weightguard_cli.main import main\n"
        f"sys.modules.pop({module!r}, None)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.exit(main(['audit', 'x']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (130, b"weightguard: interrupted\n")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ManifestError("the manifest is damaged. Restore it."), "the manifest is damaged"),
        (malformed("WG102", "ends early", file="m\x1b", offset=7), "WG102 in 'm\\x1b' at byte 7: "),
        (MemoryError(), "not enough memory"),
        (OSError(5, "Input/output error", "disk\n"), "Input/output error: 'disk\\n'"),
    ],
)
def test_what_could_not_be_done_is_2(
    error: Exception,
    expected: str,
    audits_to: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    audits_to(error)
    assert main(["audit", "x"]) == 2
    assert expected in only_line(capsys)


def test_a_bug_of_ours_is_2_and_asks_to_be_reported(
    audits_to: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    audits_to(KeyError("\x1b[31m\n::error"))
    assert main(["audit", "x"]) == 2
    line = only_line(capsys)
    assert line.isprintable()
    assert "internal error, KeyError" in line
    assert "please report it" in line


def test_a_traceback_is_for_those_who_ask(
    audits_to: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEIGHTGUARD_DEBUG", "1")
    audits_to(KeyError("x"))
    assert main(["audit", "x"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unwritable_target_is_2_before_any_work(
    tmp_path: Path, audits_to: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    audits_to(AssertionError("the audit must not start"))
    assert main(["audit", "x", "-o", str(tmp_path / "no" / "report.txt")]) == 2
    assert "cannot write" in only_line(capsys)


def test_a_target_that_fails_later_is_2(
    audits_to: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    audits_to(report())
    assert main(["audit", "x", "-o", "/dev/full"]) == 2
    assert "No space left" in only_line(capsys)


def test_a_full_disk_under_standard_output_is_2() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*MODULE, "rules"], check=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    said = b"weightguard: cannot write the output: No space left on device. "
    assert done.stderr.startswith(said)
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("arguments", [["rules"], ["rules", "--format", "json"], ["--help"]])
def test_a_reader_that_leaves_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*MODULE, *arguments], check=False, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_leaves_does_not_turn_findings_into_none() -> None:
    program = (
        "import sys, weightguard\n"
        "from weightguard.finding import Coverage, Report, finding\n"
        "bad = Report('m', 'f', True, (finding('WG201', 'm'),), Coverage(1, 1, 1, 1))\n"
        "weightguard.audit = lambda *a, **k: bad\n"
        "from weightguard_cli.main import main\n"
        "sys.exit(main(['audit', 'x']))\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("closing", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_closed_streams_leave_the_status(closing: str) -> None:
    for arguments, status in (("rules", 0), ("audit /nonexistent", 2), ("rules WG8", 2)):
        line = f"{sys.executable} -m weightguard_cli {arguments} {closing}"
        done = subprocess.run(["sh", "-c", line], check=False, capture_output=True)
        assert done.returncode == status
        assert b"Traceback" not in done.stderr


def test_a_narrow_encoding_breaks_nothing() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*MODULE, "audit", "größe.gguf"], check=False, capture_output=True, env=environment
    )
    assert done.returncode == 2
    assert b"gr\\xf6\\xdfe.gguf" in done.stdout + done.stderr
