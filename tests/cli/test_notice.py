"""Without the compiled scan the same results come slower, and the user is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard.scan import kernel
from weightguard_cli.main import main
from weightguard_cli.notice import SLOW_SCAN


def test_a_missing_extension_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_safetensors(tmp_path / "m.safetensors", {"w": random_tensor("BF16", (64, 64))})
    assert main(["audit", str(model)]) == 0
    with_extension = capsys.readouterr()
    monkeypatch.setattr(kernel, "_native", None)
    assert main(["audit", str(model)]) == 0
    without = capsys.readouterr()
    assert without.out == with_extension.out
    assert without.err.count(SLOW_SCAN) == 1
    assert SLOW_SCAN not in with_extension.err
