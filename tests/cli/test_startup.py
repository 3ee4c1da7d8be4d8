"""The command starts fast because it imports little."""

from __future__ import annotations

import subprocess
import sys
import time

HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "rich", "weightguard")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from weightguard_cli.main import main\n"
        "status = main(['--help'])\n"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "sys.exit(status or (repr(loaded) if loaded else 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_library_imports_neither_torch_nor_onnx() -> None:
    program = (
        "import sys, weightguard\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'click', 'rich')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_help_takes_less_than_a_third_of_a_second() -> None:
    best = min(_seconds() for _ in range(5))
    assert best < 0.3


def _seconds() -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "weightguard_cli", "--help"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - started
