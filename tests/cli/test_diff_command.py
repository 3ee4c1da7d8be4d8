"""``weightguard diff`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard_cli.main import main

HOSTILE = "\x1b[31m\n::error::x|<script>\u202e##[error]"


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    same, old, new = (random_tensor("F32", (64, 64), seed) for seed in (1, 2, 3))
    write_safetensors(tmp_path / "base.safetensors", {"same": same, "head": old, HOSTILE: old})
    write_safetensors(tmp_path / "new.safetensors", {"same": same, "head": new, "more": old})
    return tmp_path


def test_a_table_of_what_changed(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "base.safetensors", "new.safetensors"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("DIFFERENT: 4 tensors, 1 replaced, 1 removed, 1 added and 1 unchanged\n")
    assert any(line.split()[:1] == ["replaced"] and "head" in line for line in text.splitlines())
    assert "\x1b" not in text
    assert "<script" not in text
    assert "same" not in text.partition("tensor\n")[2]
    assert main(["diff", "base.safetensors", "new.safetensors", "--all"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.split()[:2] == ["unchanged", "0"] and row.endswith(" same") for row in rows)


def test_equal_checkpoints_are_the_same(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "new.safetensors", "new.safetensors", "--max-change", "0"]) == 0
    assert capsys.readouterr().out.startswith("SAME: 3 tensors, 3 unchanged\n")


def test_limits_make_findings(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["diff", "base.safetensors", "new.safetensors"]
    assert main([*both, "--max-change", "0.1"]) == 1
    text = capsys.readouterr().out
    assert all(code in text for code in ("WG602", "WG604", "WG605"))
    allowed = ["--replaced", "head", "--added", "more", "--removed", "*"]
    assert main([*both, *allowed]) == 0
    assert main([*both, "--max-change", "0.1", "--fail-on", "critical"]) == 0
    assert main([*both, "--max-change", "-1"]) == 2


def test_json_has_it_all(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["diff", "base.safetensors", "new.safetensors", "--format", "json"]
    assert main(both) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "weightguard-diff-v1"
    status = {change["tensor"]: change["status"] for change in document["tensors"]}
    assert status == {"head": "replaced", "same": "unchanged", "more": "added", HOSTILE: "removed"}


@pytest.mark.parametrize("target", ["base.safetensors", "new.safetensors"])
def test_neither_side_is_overwritten(target: str, pair: Path) -> None:
    before = (pair / target).read_bytes()
    assert main(["diff", "base.safetensors", "new.safetensors", "-o", target]) == 2
    assert (pair / target).read_bytes() == before


def test_what_is_missing_is_2(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "none", "new.safetensors"]) == 2
    assert main(["diff", "base.safetensors", "none"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
