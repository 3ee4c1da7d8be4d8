"""The command starts fast because it imports little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CLI = Path(__file__).parent.parent.parent / "cli"
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


def test_main_is_there_before_anything_that_takes_time() -> None:
    program = (
        "import sys\n"
        f"sys.path[:0] = {[str(CLI)]!r}\n"
        "import os; known = set(sys.modules)\n"
        "import weightguard_cli.main\n"
        "new = {m for m in sys.modules if m.partition('.')[0] != 'weightguard_cli'} - known\n"
        "sys.exit(repr(new) if new - {'__future__'} else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_the_library_imports_neither_torch_nor_onnx() -> None:
    program = (
        "import sys, weightguard\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'click', 'rich')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
