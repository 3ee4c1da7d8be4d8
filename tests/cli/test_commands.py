"""The commands on real files, from bytes to exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard_cli.main import main

HOSTILE = "\x1b[31m\n::error::x|<script>\u202e##[error]"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {"a.weight": random_tensor("F16", (32, 64), 1), "b.bias": random_tensor("F32", (64,))}
    return write_safetensors(tmp_path / "model.safetensors", tensors)


@pytest.fixture
def manifest(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "model.weightguard.json"
    assert main(["manifest", str(model), "-o", str(path)]) == 0
    capsys.readouterr()
    return path


def overwrite_end(model: Path, data: bytes) -> None:
    """Replace the last bytes of the file, which are those of ``b.bias``."""
    content = model.read_bytes()
    model.write_bytes(content[: len(content) - len(data)] + data)


def report_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_sound_checkpoint_is_sound_and_the_rest_is_said(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(model)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("SOUND: no findings\n")
    assert "Checked 2 of 2 tensors" in captured.out
    assert "Not checked:\n  - equality with trusted weights (no manifest" in captured.out
    assert captured.err == ""


def test_an_empty_checkpoint_is_never_called_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_safetensors(tmp_path / "m.safetensors", {})
    assert main(["audit", str(model)]) == 0
    assert capsys.readouterr().out.startswith("SUSPECT: 1 warning finding\n")
    assert main(["audit", str(model), "--ignore", "WG210"]) == 0
    assert capsys.readouterr().out.startswith("EMPTY: no tensor was there to be checked\n")


def test_nan_is_found_and_placed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overwrite_end(model, np.float32(np.nan).tobytes())
    assert main(["audit", str(model), "--format", "json"]) == 1
    (found,) = report_of(capsys)["findings"]
    assert found["rule"] == "WG201"
    assert found["location"]["tensor"] == "b.bias"
    assert found["location"]["element"] == [63]


def test_select_and_ignore_choose_rules(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overwrite_end(model, np.float32(np.nan).tobytes())
    assert main(["audit", str(model), "--ignore", "wg201"]) == 0
    assert "rules WG201 (--ignore)" in capsys.readouterr().out
    assert main(["audit", str(model), "--select", "WG1,WG405", "--select", "WG406"]) == 0
    assert "rules other than WG1, WG405, WG406 (--select)" in capsys.readouterr().out
    assert main(["audit", str(model), "--select", "WG20"]) == 1


@pytest.mark.parametrize(
    "choice",
    [
        ["--ignore", "WG"],
        ["--select", "WG4"],
        ["--select", "WG305,WG4"],
        ["--select", "WG2", "--ignore", "WG2"],
    ],
)
def test_a_choice_that_leaves_nothing_to_check_is_wrong_usage(
    choice: list[str], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(model), *choice]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing would be checked" in captured.err


def test_a_folder_is_no_manifest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(model), "."]) == 2
    assert "'.' is not a regular file" in capsys.readouterr().err


def test_equal_weights_are_equal(
    model: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(model), str(manifest)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("EQUAL: all 2 tensors are those of the manifest\n")
    assert f"weights {json.loads(manifest.read_text())['weights']}\n" in text
    assert main(["audit", str(model), "--manifest", str(manifest)]) == 0


def test_a_flipped_bit_is_named(
    model: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(model.read_bytes())
    content[-5] ^= 0x01
    model.write_bytes(content)
    assert main(["verify", str(model), str(manifest)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("DIFFERENT: 1 critical finding in 1 of 2 tensors\n")
    assert "b.bias[62]" in text
    assert "bit 24 flipped" in text
    assert main(["verify", str(model), str(manifest), "--format", "json"]) == 1
    (found,) = report_of(capsys)["findings"]
    assert found["evidence"]["elements"][0]["flipped_bits"] == [24]


def test_a_truncated_file_is_2_with_a_report(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.write_bytes(model.read_bytes()[:-10])
    assert main(["audit", str(model), "--format", "json"]) == 2
    report = report_of(capsys)
    assert report["complete"] is False
    assert report["findings"][0]["location"]["file"] == "model.safetensors"
    assert main(["audit", str(model)]) == 2
    assert capsys.readouterr().out.startswith("UNREADABLE: ")


def test_a_broken_checkpoint_gets_no_manifest(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.write_bytes(model.read_bytes()[:-10])
    assert main(["manifest", str(model), "-o", str(tmp_path / "m.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("weightguard: WG1")
    assert not (tmp_path / "m.json").exists()


def test_the_report_goes_to_a_file(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = model.with_name("report.json")
    assert main(["audit", str(model), "--format", "json", "-o", str(target)]) == 0
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    assert json.loads(target.read_text())["schema"] == "weightguard-report-v1"


@pytest.mark.parametrize("command", [["audit"], ["manifest"]])
def test_the_checkpoint_is_not_overwritten(command: list[str], model: Path) -> None:
    before = model.read_bytes()
    assert main([*command, str(model), "-o", str(model)]) == 2
    assert model.read_bytes() == before


@pytest.mark.parametrize("digest", ["blake3", "sha256"])
def test_a_manifest_can_be_inspected(
    digest: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.json"
    made = ["manifest", str(model), "-o", str(path), "--digest", digest, "--file-digests"]
    assert main(made) == 0
    assert "m.json" in capsys.readouterr().out
    assert main(["inspect", str(path), "--format", "json", "--tensor", "a.*"]) == 0
    document = report_of(capsys)
    assert document["schema"] == "weightguard-inspection-v1"
    assert list(document["tensors"]) == ["a.weight"]
    assert document["tensors"]["a.weight"]["digest"].startswith(digest + ":")
    assert list(document["files"]) == ["model.safetensors"]
    assert main(["inspect", str(path), "--tensor", "a.*"]) == 0
    text = capsys.readouterr().out
    assert "32x64" in text
    assert "1 of 2 tensors shown" in text
    assert "b.bias" not in text


def test_a_manifest_of_bulk_is_written_where_a_file_can_be(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in ("-", "/dev/null", str(tmp_path), str(tmp_path / "no" / "m.json")):
        assert main(["manifest", str(model), "-o", target]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot write" in line


@pytest.mark.parametrize("name", [HOSTILE, "n" * 1_000_000, "::error::x", "\udc80"])
def test_hostile_names_are_harmless_in_every_output(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.frombuffer(random_tensor("F32", (4, 64))[2], np.float32).copy()
    values[7] = np.nan
    tensors = {name: ("F32", (4, 64), values.tobytes())}
    model = write_safetensors(tmp_path / "m.safetensors", tensors)
    manifest = tmp_path / "m.json"
    for output_format in ("text", "json"):
        form = ["--format", output_format]
        main(["audit", str(model), *form])
        main(["manifest", str(model), "-o", str(manifest)])
        if manifest.exists():
            changed = tmp_path / "changed.safetensors"
            changed.write_bytes(model.read_bytes()[:-4] + b"\x01\x02\x03\x3d")
            main(["verify", str(changed), str(manifest), *form])
            main(["inspect", str(manifest), *form])
        captured = capsys.readouterr()
        lines = (captured.out + captured.err).split("\n")
        assert all(line.isascii() and (line.isprintable() or not line) for line in lines)
        assert not any(line.strip().startswith("::") for line in lines)
        assert not any(mark in line for mark in ("<script", "##[") for line in lines)
        assert not any("|" in line for line in lines)
        assert output_format == "json" or max(map(len, lines)) < 5000


def test_a_missing_path_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "missing", tmp_path):
        assert main(["audit", str(path)]) == 2
        assert capsys.readouterr().out.startswith("UNREADABLE: ")
