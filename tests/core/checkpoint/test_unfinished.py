"""The journal of an interrupted repair is told, of the files that it is of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, safetensors_bytes, write_safetensors
from weightguard import CheckpointError, audit, fingerprint, open_checkpoint
from weightguard.checkpoint.unfinished import JOURNAL, MAGIC, is_journal, unfinished_repair


def journal(folder: Path, text: bytes) -> None:
    (folder / JOURNAL).write_bytes(MAGIC + len(text).to_bytes(8, "little") + text)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_safetensors(tmp_path / "model.safetensors", {"w": random_tensor("F32", (8, 8))})


def codes(path: Path) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        return [found.rule for found in checkpoint.findings]


def test_our_own_files_are_known_by_name() -> None:
    assert is_journal(JOURNAL)
    assert is_journal(f".{JOURNAL}.abcdefgh.tmp")
    assert not is_journal("model.safetensors")


def test_a_folder_with_a_journal_is_told(model: Path) -> None:
    assert codes(model.parent) == []
    journal(model.parent, b"")
    assert codes(model.parent) == ["WG123"]
    (found,) = unfinished_repair(model.parent, [])
    assert found.location.file == JOURNAL
    assert "weightguard repair PATH MANIFEST --in-place" in str(found.remedy)
    assert "delete" in str(found.remedy)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'{"files":[{"name":"model.safetensors","size":3}],"weights":"0"}', True),
        (b'{"files":[{"name":"other.safetensors"}]}', False),
        (b'{"files":[{"name":"other"},{"name":"model.safetensors"}]}', True),
        (b"nonsense", True),
        (b'{"files":3}', True),
    ],
)
def test_a_file_is_told_of_only_where_the_journal_names_it(
    model: Path, text: bytes, told: bool
) -> None:
    journal(model.parent, text)
    assert codes(model) == ["WG123"] * told


@pytest.mark.parametrize("data", [b"", MAGIC, MAGIC + b"\xff" * 8, MAGIC + bytes(7) + b"\x01"])
def test_a_journal_that_cannot_be_read_is_told_of_every_file(model: Path, data: bytes) -> None:
    (model.parent / JOURNAL).write_bytes(data)
    assert codes(model) == ["WG123"]


def test_what_cannot_be_opened_is_told_with_the_journal(model: Path) -> None:
    """A header written by half is what a killed repair may leave."""
    journal(model.parent, b'{"files":[{"name":"model.safetensors"}]}')
    model.write_bytes(b"\xff" * 100)
    for path in (model, model.parent):
        report = audit(path)
        assert not report.complete
        assert "WG123" in [found.rule for found in report.findings]


def test_nobody_attests_what_may_be_half_written(model: Path) -> None:
    journal(model.parent, b"")
    with pytest.raises(CheckpointError, match="interrupted"):
        fingerprint(model.parent)
    (model.parent / JOURNAL).unlink()
    fingerprint(model.parent).close()
    assert model.read_bytes() == safetensors_bytes({"w": random_tensor("F32", (8, 8))})
