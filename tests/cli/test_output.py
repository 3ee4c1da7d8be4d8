"""Results reach a file whole or not at all, and never the wrong file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from weightguard.errors import WeightguardError
from weightguard_cli.output import deliver


def test_a_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.txt"
    target.write_text("old")

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WeightguardError, match="No space left"):
        deliver("new", target)
    assert target.read_text() == "old"
    monkeypatch.undo()
    deliver("new é", target)
    assert target.read_text(encoding="utf-8") == "new é"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    deliver("new", link)
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    deliver("report", pipe)
    reader.join()
    assert received == ["report"]
    assert pipe.is_fifo()
