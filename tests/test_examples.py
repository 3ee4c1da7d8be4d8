"""The examples do what the README says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from weightguard import audit
from weightguard_cli.main import main

ROOT = Path(__file__).parent.parent


def test_the_shipped_damage_is_found(tmp_path: Path) -> None:
    target = tmp_path / "opt.safetensors"
    script = ROOT / "examples" / "shipped_damage.py"
    subprocess.run([sys.executable, str(script), str(target)], check=True)
    (found,) = audit(target).findings
    assert (found.rule, found.evidence["count"]) == ("WG207", 6)
    assert found.location.element == divmod(1_234_001, 1024)


def test_the_readme_shows_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = ROOT / "examples" / "shipped_damage.py"
    subprocess.run([sys.executable, str(script), "opt.safetensors"], check=True)
    assert main(["audit", "opt.safetensors"]) == 1
    shown = (ROOT / "README.md").read_text().partition("$ weightguard audit opt.safetensors\n")[2]
    lines = shown.splitlines()
    printed = capsys.readouterr().out.splitlines()
    assert [line.removeprefix("    ") for line in lines[: len(printed)]] == printed
