"""Clean real models are clean: the false alarms of every rule on weights that people use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real_models import magika_onnx, minilm_folder, smollm2_bf16, smollm2_gguf
from weightguard import Severity, audit, fingerprint, verify

MODELS = {
    "SmolLM2-135M-Instruct, GGUF": smollm2_gguf,
    "SmolLM2-135M-Instruct, bf16 safetensors": smollm2_bf16,
    "all-MiniLM-L6-v2, folder with config.json": minilm_folder,
    "magika, ONNX": magika_onnx,
}


@pytest.mark.real
@pytest.mark.proof
@pytest.mark.parametrize("name", MODELS)
def test_a_clean_real_model_has_no_finding_above_info(
    name: str, tmp_path: Path, claim: Callable[[str], None]
) -> None:
    path = MODELS[name]()
    report = audit(path)
    assert report.complete
    assert report.at_least(Severity.WARNING) == ()
    with fingerprint(path) as manifest:
        assert verify(path, manifest).at_least(Severity.WARNING) == ()
    claim(f"0 false alarms in {report.coverage.tensors_total} tensors of {name}")
