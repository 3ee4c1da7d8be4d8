"""No result replaces weights, or anything else that is to be checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors, write_sharded
from weightguard import ManifestError, fingerprint
from weightguard.errors import WeightguardError
from weightguard_cli.formats import FORMATS
from weightguard_cli.main import main
from weightguard_cli.target import check_target

ONE = {"w": random_tensor("F32", (8, 64), 1)}
TWO = {"v": random_tensor("F32", (8, 64), 2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = write_sharded(tmp_path / "model", [ONE, TWO])
    (model / "config.json").write_text("{}")
    (model / "tokenizer.model").write_bytes(b"\x0a\x05")
    (tmp_path / "hard").hardlink_to(model / "model-00002-of-00002.safetensors")
    (tmp_path / "soft").symlink_to(model / "model-00001-of-00002.safetensors")
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "target",
    [
        "model/model-00001-of-00002.safetensors",
        "model/model-00002-of-00002.safetensors",
        "model/model.safetensors.index.json",
        "model/config.json",
        "model/tokenizer.model",
        "hard",
        "soft",
    ],
)
@pytest.mark.parametrize("command", [["audit"], ["audit", "--format", "json"], ["manifest"]])
def test_no_file_of_the_checkpoint_is_replaced(
    command: list[str], target: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(tmp_path)
    assert main([*command, str(folder), "-o", str(tmp_path / target)]) == 2
    assert "would" in capfd.readouterr().err
    assert contents(tmp_path) == before
    shard = folder / "model-00001-of-00002.safetensors"
    assert main([*command, str(shard), "-o", str(tmp_path / target)]) == 2
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["audit", "manifest"])
def test_other_weights_are_not_replaced_either(command: str, tmp_path: Path) -> None:
    model = write_safetensors(tmp_path / "a.safetensors", ONE)
    (tmp_path / "elsewhere").mkdir()
    other = write_safetensors(tmp_path / "elsewhere" / "weights", TWO)
    before = contents(tmp_path)
    assert main([command, str(model), "-o", str(other)]) == 2
    assert contents(tmp_path) == before


def test_external_data_of_a_file_in_a_folder_below_is_not_replaced(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "model", [ONE, TWO])
    (folder / "part").mkdir()
    name = "model-00002-of-00002.safetensors"
    (folder / name).rename(folder / "part" / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(name, f"part/{name}"))
    link = tmp_path / "report.txt"
    link.hardlink_to(folder / "part" / name)
    before = contents(tmp_path)
    assert main(["audit", str(folder), "-o", str(link)]) == 2
    assert contents(tmp_path) == before


def test_a_report_does_not_replace_a_manifest(tmp_path: Path) -> None:
    model = write_safetensors(tmp_path / "a.safetensors", ONE)
    (tmp_path / "kept").mkdir()
    target = tmp_path / "kept" / "m.weightguard.json"
    assert main(["manifest", str(model), "-o", str(target)]) == 0
    before = contents(tmp_path)
    assert main(["audit", str(model), "-o", str(target)]) == 2
    assert contents(tmp_path) == before


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_weightguard_wrote_is_replaced_in_place(form: str, folder: Path) -> None:
    report, manifest = folder / "report", folder / "m.weightguard.json"
    for _ in range(2):
        assert main(["audit", str(folder), "--format", form, "-o", str(report)]) == 0
        assert main(["manifest", str(folder), "-o", str(manifest)]) == 0
    report.write_bytes(b"")
    assert main(["audit", str(folder), "--format", form, "-o", str(report)]) == 0
    assert report.stat().st_size


def test_the_library_replaces_nothing_but_manifests(tmp_path: Path) -> None:
    model = write_safetensors(tmp_path / "a.safetensors", ONE)
    notes = tmp_path / "notes.json"
    notes.write_text('{"schema": "another"}')
    before = contents(tmp_path)
    with fingerprint(model) as manifest:
        for target in (model, notes):
            with pytest.raises(ManifestError, match="is no manifest"):
                manifest.write(target)
    assert contents(tmp_path) == before


def test_the_checkpoint_is_never_the_target(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"weights")
    alias = tmp_path / "alias"
    alias.symlink_to(model)
    for target in (model, alias):
        with pytest.raises(WeightguardError, match="would overwrite"):
            check_target(target, model)
    assert model.read_bytes() == b"weights"


def test_a_target_without_a_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(WeightguardError, match="is no folder"):
        check_target(tmp_path / "missing" / "report.txt")
    with pytest.raises(WeightguardError, match="is a folder"):
        check_target(tmp_path)
    check_target(None)
    check_target(Path("-"))


@pytest.mark.parametrize("output_format", FORMATS)
def test_an_earlier_report_beside_the_checkpoint_is_replaced(
    output_format: str, folder: Path
) -> None:
    target = folder / "report"
    for _ in range(2):
        arguments = ["audit", str(folder), "--format", output_format, "-o", str(target)]
        assert main(arguments) == 0
    target.write_bytes(b"x" + target.read_bytes())
    assert main(arguments) == 2
