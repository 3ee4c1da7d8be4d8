"""On a terminal: colours and a progress bar; elsewhere neither."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors

PLAIN = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminal") / "model.safetensors"
    return write_safetensors(path, {"a.weight": random_tensor("BF16", (1024, 4096))})


class Terminal:
    """A pseudo-terminal that collects what is written to it."""

    def __init__(self, columns: int = 80) -> None:
        self._ours, self.theirs = pty.openpty()
        termios.tcsetwinsize(self.theirs, (24, columns))
        self._pieces: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._ours, 4096)
            except OSError:
                return  # the last writer has closed its side
            self._pieces.append(piece)

    def text(self) -> str:
        os.close(self.theirs)
        self._reader.join()
        os.close(self._ours)
        return b"".join(self._pieces).decode()


def run(arguments: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    """Return exit status and what terminals on stdout and stderr received."""
    out, err = Terminal(), Terminal()
    done = subprocess.run(
        [sys.executable, "-m", "weightguard_cli", *arguments],
        check=False,
        stdout=out.theirs,
        stderr=err.theirs,
        env={**PLAIN, **environment},
    )
    return done.returncode, out.text(), err.text()


def test_a_terminal_gets_colours_and_progress(model: Path) -> None:
    status, out, err = run(["audit", str(model)], {"TERM": "xterm"})
    assert status == 0
    assert "\x1b[" in out
    assert "SOUND" in out
    assert "MB/s" in err
    assert "\x1b[" in err


def test_no_color_is_honoured(model: Path) -> None:
    status, out, _ = run(["audit", str(model)], {"TERM": "xterm", "NO_COLOR": "1"})
    assert status == 0
    assert "\x1b[" not in out


def test_a_dumb_terminal_gets_plain_text(model: Path) -> None:
    status, out, err = run(["audit", str(model)], {"TERM": "dumb"})
    assert (status, err) == (0, "")
    assert "\x1b[" not in out


def test_a_pipe_gets_plain_text_and_no_progress(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weightguard_cli", "audit", str(model)],
        check=False,
        capture_output=True,
        env={**PLAIN, "TERM": "xterm"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b[" not in done.stdout


def test_a_hostile_name_sends_no_control_code_to_a_terminal(tmp_path: Path) -> None:
    name = "\x1b]0;owned\x07\x1b[2J[red]|::error"
    tensors = {name: ("F32", (2, 64), bytes(512))}
    model = write_safetensors(tmp_path / "\x1b[2Jm.safetensors", tensors)
    status, out, err = run(
        ["audit", str(model), "--threads", "1"], {"TERM": "xterm", "NO_COLOR": "1"}
    )
    assert status == 1
    assert "\x1b" not in out
    assert "\x1b]0" not in err
    assert "\x1b[2J" not in err
    assert r"\x1b]0;owned\x07\x1b[2J[red]" in out


def test_the_verdict_of_a_report_in_a_file_is_told_to_the_terminal(
    model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "report.txt"
    _, out, err = run(["audit", str(model), "-o", str(target)], {"TERM": "xterm"})
    assert out == ""
    assert "SOUND: no findings" in err
    assert "\x1b[" not in target.read_text()
