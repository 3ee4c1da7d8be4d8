"""One examination, several reports: none keeps the others back, and no two go to one place."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard_cli import conclude
from weightguard_cli.formats import FORMATS
from weightguard_cli.main import main

ALL = [part for name in FORMATS[1:] for part in ("--report", f"{name}=out.{name}")]


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["manifest", str(write("model", 1)), "-o", "m.json"]) == 0
    write("base", 2)
    return tmp_path


def write(folder: str, seed: int) -> Path:
    Path(folder).mkdir()
    return write_safetensors(
        Path(folder) / "m.safetensors", {"w": random_tensor("F32", (64, 64), seed)}
    )


COMMANDS = {
    "audit": ["audit", "model"],
    "verify": ["verify", "model", "m.json"],
    "diff": ["diff", "base", "model"],
    "repair": ["repair", "model", "m.json"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_reporting_command_writes_every_format(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMANDS[command], *ALL]) == 0
    word = capsys.readouterr().out.partition(":")[0]
    assert word == {
        "audit": "SOUND", "verify": "EQUAL", "diff": "DIFFERENT", "repair": "INTACT"
    }[command]  # fmt: skip
    for name in FORMATS[2:]:
        assert word in Path(f"out.{name}").read_text("utf-8")
    kind = command if command in ("diff", "repair") else "report"
    assert json.loads(Path("out.json").read_text())["schema"] == f"weightguard-{kind}-v1"


def test_one_that_fails_keeps_none_of_the_others_back(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(name: str, *arguments: object) -> str:
        if name == "sarif":
            raise RuntimeError("no luck")
        return f"{name}\n"

    with mock.patch.object(conclude, "render", failing):
        assert main(["audit", "model", *ALL]) == 2
    captured = capsys.readouterr()
    assert captured.out == "text\n"
    assert captured.err == (
        "weightguard: could not make the sarif report for 'out.sarif' (RuntimeError: no luck); "
        "the other reports are written.\n"
    )
    assert [Path(f"out.{name}").exists() for name in FORMATS[1:]] == [True, False, True, True, True]


def test_a_file_that_cannot_be_written_is_named_and_the_others_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = ["--report", "json=out.json", "--report", "html=out.html"]
    Path("model/m.safetensors").chmod(0o644)
    real = conclude.deliver

    def full(text: str, target: Path | None) -> None:
        if target == Path("out.json"):
            raise conclude.WeightguardError("cannot write 'out.json': No space left on device.")
        real(text, target)

    with mock.patch.object(conclude, "deliver", full):
        assert main(["audit", "model", *wanted]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("SOUND")
    assert "out.json" in captured.err
    assert Path("out.html").exists()


@pytest.mark.parametrize(
    "twice",
    [
        ["--report", "json=x", "--report", "html=x"],
        ["--report", "json=x", "--report", "html=./x"],
        ["-o", "x", "--report", "html=model/../x"],
        ["--report", "json=-"],
    ],
)
def test_two_reports_in_one_place_are_refused_before_any_work(
    twice: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch("weightguard.audit", side_effect=AssertionError("work began")):
        assert main(["audit", "model", *twice]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "two reports would go to " in captured.err
    assert not Path("x").exists()


@pytest.mark.parametrize("target", ["base/m.safetensors", "model/m.safetensors"])
def test_no_report_goes_over_weights(target: str) -> None:
    before = Path(target).read_bytes()
    assert main(["diff", "base", "model", "--report", f"html={target}"]) == 2
    assert Path(target).read_bytes() == before
