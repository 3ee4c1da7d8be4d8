"""The example server does not serve what its manifest does not hold, and says why in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from examples import serve_fastapi
from tests.integrations.torch.tiny_models import llama
from weightguard import fingerprint


def flipped(path: Path) -> None:
    """Flip a bit of the last tensor's last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1 << 6
    path.write_bytes(data)


@pytest.mark.parametrize("damaged", ["model", "manifest"])
def test_damage_is_one_line_and_exit_status_2(
    tmp_path: Path,
    damaged: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, manifest = tmp_path / "model", tmp_path / "model.weightguard.json"
    llama().save_pretrained(folder)
    with fingerprint(folder) as made:
        made.write(manifest)
    if damaged == "model":
        flipped(folder / "model.safetensors")
    else:
        manifest.write_text("{")
    monkeypatch.setattr(sys, "argv", ["serve", str(folder), str(manifest)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        serve_fastapi.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("not served: ")
    assert said.count("\n") == 1
    assert ("WG401" if damaged == "model" else "is not a valid weightguard manifest") in said
