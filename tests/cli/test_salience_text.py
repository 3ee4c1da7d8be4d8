"""What stands out, as text: the word nominated, bounded tables, hostile names escaped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import write_safetensors
from tests.language_models import COMPANION, SUPER_WEIGHT, llama, stored
from weightguard.salient import OutlierChannel, RecurringChannel, Salience, Score, SuperWeight
from weightguard_cli.main import main
from weightguard_cli.salience_text import salience_lines

HOSTILE = "layers.0.\x1b[31m|<script>\n::error.down_proj.weight"


def weight(name: str = HOSTILE) -> SuperWeight:
    return SuperWeight(
        name, (1, 2), "0x40bc", 5.875, "nominated", {"column_ratio": Score(153.3, 1)}
    )


def test_names_are_escaped() -> None:
    channel = OutlierChannel(HOSTILE, "row", 3, "0x40bc", 5.875, 9.1)
    text = "\n".join(salience_lines(Salience((weight(),), (channel,))))
    assert "\x1b" not in text
    assert "<script" not in text
    assert "\n::error" not in text
    assert "|" not in text


def test_tables_are_bounded_and_say_of_how_many() -> None:
    channels = tuple(OutlierChannel("w", "row", n, "0x1", 1.0, 5.0) for n in range(99))
    lines = list(salience_lines(Salience((weight("w"),) * 30, channels)))
    assert len(lines) == 1 + 1 + 8 + 1 + 1 + 5
    assert "8 of 30" in lines[0]
    assert "99 outlier channels" in "\n".join(lines)


def test_layers_are_drawn_together() -> None:
    channel = RecurringChannel(507, 9, 270, (0, 1, 2, 5, 8, 9))
    assert list(salience_lines(Salience((), (), (channel,))))[-1].endswith("0-2, 5, 8-9")


def test_nothing_that_stands_out_is_nothing_said() -> None:
    assert list(salience_lines(Salience())) == []


def test_an_audit_shows_what_it_nominates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = stored(llama(SUPER_WEIGHT, COMPANION))
    path = write_safetensors(tmp_path / "m.safetensors", tensors)
    assert main(["audit", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "SOUND" in shown
    assert "nominated ones are not proven" in shown
    assert "model.layers.2.mlp.down_proj.weight[23,77]" in shown
