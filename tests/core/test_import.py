"""What importing the package brings with it."""

from __future__ import annotations

import subprocess
import sys

import weightguard


def test_the_core_imports_nothing_heavy() -> None:
    heavy = "torch onnx onnxruntime click rich gguf safetensors jsonschema"
    script = f"import sys, weightguard; print([m for m in {heavy.split()!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_names_exist_and_are_documented() -> None:
    for name in weightguard.__all__:
        assert getattr(weightguard, name).__doc__ or name == "RULES"
