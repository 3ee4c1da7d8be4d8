"""What cannot be calibrated is told in one line with a remedy, and the manifest stays as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.integrations.torch import tiny_models
from weightguard import fingerprint
from weightguard_cli.main import main
from weightguard_integrations.torch import memory


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.saved(tiny_models.llama(), tmp_path_factory.mktemp("model"))
    with fingerprint(folder) as manifest:
        manifest.write(folder / "m.json")
    return folder


@pytest.fixture
def model(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "model"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def refusal(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, check that it refuses and changes nothing, and return its one line."""

    def run(*arguments: str, path: Path = model, manifest: Path = model / "m.json") -> str:
        before = contents(model)
        capsys.readouterr()
        assert main(["calibrate", str(path), "-m", str(manifest), *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert contents(model) == before
        (line,) = captured.err.splitlines()
        assert line.startswith("weightguard: ")
        return line

    return run


def edit_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def attest(model: Path) -> None:
    with fingerprint(model) as manifest:
        manifest.write(model / "m.json")


def test_a_folder_without_a_config(model: Path, refusal: Callable[..., str]) -> None:
    (model / "config.json").unlink()
    assert "has no config.json" in refusal()


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_broken_config(text: str, model: Path, refusal: Callable[..., str]) -> None:
    (model / "config.json").write_text(text)
    assert "config.json" in refusal()


@pytest.mark.parametrize("kind", ["no-such-architecture", None, 7, ["llama"], "\x1b[31m"])
def test_an_unknown_architecture(kind: object, model: Path, refusal: Callable[..., str]) -> None:
    edit_config(model, model_type=kind)
    assert "does not know the architecture" in refusal()


def test_code_of_a_checkpoint_never_runs(model: Path, refusal: Callable[..., str]) -> None:
    marker = model.parent / "ran"
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\n")
    edit_config(model, model_type="evil", auto_map={"AutoConfig": "evil.C"})
    assert "never run" in refusal()
    edit_config(model, model_type="llama", auto_map={"AutoModelForCausalLM": "evil.C"})
    main(["calibrate", str(model), "-m", str(model / "m.json")])
    assert not marker.exists()


def test_an_adapter_is_refused(model: Path, refusal: Callable[..., str]) -> None:
    (model / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refusal()


def test_an_architecture_that_is_no_causal_model(model: Path, refusal: Callable[..., str]) -> None:
    edit_config(model, model_type="vit", architectures=["ViTModel"])
    assert "cannot load" in refusal()


def test_a_config_of_a_larger_model(model: Path, refusal: Callable[..., str]) -> None:
    edit_config(model, num_hidden_layers=4)
    assert "random numbers" in refusal()


def test_a_config_of_other_shapes(model: Path, refusal: Callable[..., str]) -> None:
    edit_config(model, intermediate_size=48)
    assert "other shapes than its config.json says" in refusal()


def test_a_model_without_a_language_model_head(model: Path, refusal: Callable[..., str]) -> None:
    tiny_models.bert_encoder().save_pretrained(model)
    attest(model)
    assert "has no language model head" in refusal()


def test_a_file_of_weights_alone(model: Path, refusal: Callable[..., str]) -> None:
    assert "name the folder" in refusal(path=model / "model.safetensors")


def test_a_model_that_does_not_fit(
    model: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1_000_000_000)
    assert "of which 1.0 GB are available" in refusal()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(
    value: float, model: Path, refusal: Callable[..., str]
) -> None:
    damaged = tiny_models.llama()
    with torch.no_grad():
        damaged.model.layers[2].mlp.up_proj.weight[3, 4] = value
    tiny_models.saved(damaged, model)
    attest(model)
    assert "NaN or infinite" in refusal()


def test_weights_that_overflow(model: Path, refusal: Callable[..., str]) -> None:
    damaged = tiny_models.llama()
    with torch.no_grad():
        damaged.model.layers[2].mlp.up_proj.weight.fill_(3e38)
        damaged.model.layers[2].mlp.gate_proj.weight.fill_(3e38)
    tiny_models.saved(damaged, model)
    attest(model)
    assert "nothing can be calibrated" in refusal()


def test_a_manifest_of_another_model(model: Path, refusal: Callable[..., str]) -> None:
    other = tiny_models.llama()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    tiny_models.saved(other, model)
    line = refusal()
    assert "another model" in line
    assert "WG401 in 'model.layers.0.mlp.up_proj.weight'" in line


def test_what_is_loaded_must_be_what_was_verified(model: Path, refusal: Callable[..., str]) -> None:
    """A second checkpoint in the folder, which transformers prefers and the index does not name."""
    sharded = model.parent / "sharded"
    tiny_models.saved(tiny_models.llama(), sharded, shard="20KB")
    for path in sharded.iterdir():
        shutil.copy(path, model)
    other = tiny_models.llama()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    tiny_models.saved(other, model.parent / "other")
    shutil.copy(model.parent / "other" / "model.safetensors", model)
    assert "another file was loaded" in refusal()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"caf\xe9\n", "is not UTF-8 text: byte 3"),
        ("text\n".encode("utf-16"), "is not UTF-8 text: byte 0"),
        (b"", "holds 0 prompts"),
        (b"\n\n", "holds 0 prompts"),
        (b"[1, 2]\n" * 257, "holds 257 prompts"),
        (b"[1, 2, 256]\n", "entry 3 is 256, where token ids must be integers from 0 to 255"),
        (b"[-1]\n", "entry 1 is -1"),
        (b"[1, true]\n", "entry 2 is true"),
        (b"[1, 9" + b"0" * 5000 + b"]\n", "is no JSON array of token ids"),
        (b"[1, 2\n", "is no JSON array of token ids"),
        (b"[]\n", "one token id at least"),
        (b"[1]\n[" + b"1, " * 2000 + b"1]\n", "prompt 2 has 2001 tokens"),
        (b"[5]\n", "no loss to measure"),
        (b"words\n", "has no tokenizer"),
        (b"[1.5]\n", "entry 1 is 1.5"),
        (b"[" * 100_000 + b"\n", "is no JSON array"),
        (bytes((1 << 20) + 1), "cannot read the prompts"),
    ],
    ids=range(17),
)
def test_prompts_that_cannot_be_used(
    data: bytes, expected: str, refusal: Callable[..., str], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes(data)
    assert expected in refusal("--prompts", str(prompts))


def test_prompts_that_are_no_file(refusal: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        assert "cannot read the prompts" in refusal("--prompts", str(path))


def test_no_manifest(model: Path, refusal: Callable[..., str]) -> None:
    line = refusal(manifest=model / "missing.json")
    assert "cannot read the manifest" in line
    assert "`weightguard manifest`" in line


def test_a_missing_extra_is_named(model: Path, tmp_path: Path) -> None:
    program = (
        "import importlib.util as u, sys\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'transformers' else found(n, *a)\n"
        "from weightguard_cli.main import main\n"
        f"sys.exit(main(['calibrate', {str(model)!r}, '-m', {str(model / 'm.json')!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "needs transformers: pip install 'weightguard-integrity[torch]'" in line


def test_importing_the_package_imports_no_torch() -> None:
    program = (
        "import sys, weightguard_integrations.torch, weightguard_cli.calibrate\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'accelerate')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
