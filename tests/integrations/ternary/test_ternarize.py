"""``weightguard ternarize``: a real model packed, attested, read back; refusals leave nothing."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.checkpoints import write_safetensors
from tests.integrations.ternary.test_layers import KEPT, TEXT
from tests.integrations.torch.real_folder import smollm2_folder
from weightguard import Manifest, WeightguardError, fingerprint, verify
from weightguard.salient import Salience, SuperWeight
from weightguard_cli.main import main
from weightguard_integrations.ternary import PackedTernary
from weightguard_integrations.ternary.folder import FolderWriter, read_packed
from weightguard_integrations.ternary.imports import absmean
from weightguard_integrations.ternary.layers import load_ternary
from weightguard_integrations.ternary.ternarize import ternarize

NAME = "model.layers.11.mlp.down_proj.weight"


def floats(*shape: int) -> bytes:
    return np.random.default_rng(1).standard_normal(shape, np.float32).tobytes()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = {
        "a.up_proj.weight": ("F32", (40, 30), floats(40, 30)),
        "a.norm.weight": ("F32", (30,), floats(30)),
        "a.q_proj.bias": ("F32", (3,), floats(3)),
    }
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").symlink_to("/etc/hostname")
    return folder


def test_what_is_written_is_attested_and_reads_back(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["ternarize", str(checkpoint), "-o", str(out)]) == 0
    assert {path.name for path in out.iterdir()} >= {"model.safetensors", "config.json"}
    assert not (out / "tokenizer.json").exists(), "links are not followed"
    with Manifest.read(out / "model.weightguard.json") as manifest:
        assert verify(out, manifest).findings == ()
        assert {"a.norm.weight", "a.up_proj.weight.packed"} <= set(manifest.document.tensors)
    ((matrix, kept),) = read_packed(out)
    codes, scale = absmean(np.frombuffer(floats(40, 30), np.float32).reshape(40, 30))
    assert (matrix.name, kept) == ("a.up_proj.weight", [])
    assert (matrix.unpack() == codes).all()
    assert matrix.scales.tolist() == [scale]


def test_packing_twice_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        ternarize(checkpoint, tmp_path / name)
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert first == second


def test_a_changed_byte_is_not_read(checkpoint: Path, tmp_path: Path) -> None:
    ternarize(checkpoint, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightguardError, match="not the attested one"):
        list(read_packed(tmp_path / "out"))


def test_packed_bytes_that_contradict_their_check_rows(checkpoint: Path, tmp_path: Path) -> None:
    """Attested or not: who writes the manifest may have written the bytes."""
    out = tmp_path / "out"
    ternarize(checkpoint, out)
    data = bytearray((out / "model.safetensors").read_bytes())
    size = int.from_bytes(data[:8], "little")
    start = json.loads(data[8 : 8 + size])["a.up_proj.weight.packed"]["data_offsets"][0]
    data[8 + size + start] ^= 1
    (out / "model.safetensors").write_bytes(data)
    (out / "model.weightguard.json").unlink()
    with fingerprint(out) as manifest:
        manifest.write(out / "model.weightguard.json")
    with pytest.raises(WeightguardError, match=r"contradict|not -1, 0 or 1"):
        list(read_packed(out))


@pytest.mark.parametrize("place", [(0, 0), (2, 0), (0, -1)], ids=["packed", "beyond", "before"])
def test_kept_weights_that_cannot_be_are_refused(tmp_path: Path, place: tuple[int, int]) -> None:
    writer = FolderWriter(tmp_path / "data")
    codes = np.array([[1, 0], [0, -1]], np.int8)
    writer.add_layer(PackedTernary.from_int8(codes, 1.0, name="a.weight"), [(*place, 5.0)])
    writer.finish(tmp_path / "model.safetensors")
    with fingerprint(tmp_path) as manifest:
        manifest.write(tmp_path / "model.weightguard.json")
    with pytest.raises(WeightguardError, match="keeps a weight that it does not have"):
        list(read_packed(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "nothing"], "matches 'nothing'"),
        (["-o", "nodir/x"], "'nodir' is no folder"),
        (["--keep-super-weights"], "needs the checkpoint's manifest"),
        (["-m", "other.weightguard.json"], "differ in 2 tensors"),
        (["-m", "stale.weightguard.json"], "not the attested one"),
        (["-m", "sound.weightguard.json", "--keep-super-weights"], "no confirmed super weights"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(
    checkpoint: Path,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with fingerprint(checkpoint) as manifest:
        manifest.write("sound.weightguard.json")
    tensors = {"a.up_proj.weight": ("F32", (40, 30), bytes(4800))}
    with fingerprint(write_safetensors(tmp_path / "x.safetensors", tensors)) as manifest:
        manifest.write("other.weightguard.json")
    shutil.copytree(checkpoint, tmp_path / "before", symlinks=True)
    data = bytearray((tmp_path / "before/model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "before/model.safetensors").write_bytes(data)
    with fingerprint(tmp_path / "before") as manifest:
        manifest.write("stale.weightguard.json")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["ternarize", str(checkpoint), "-o", "out", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_existing_folder_is_left_alone(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ternarize", str(checkpoint), "-o", str(checkpoint)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_folder_without_packed_layers_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightguardError, match="is no folder of"):
        load_ternary(tmp_path / "nodir")


def test_without_the_kernel_it_says_so(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['weightguard_integrations.ternary._native'] = None\n"
        "from weightguard_cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "ternarize", str(checkpoint), "-o", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "the ternary kernel was not compiled" in done.stderr
    assert "internal" not in done.stderr


@pytest.mark.real
@pytest.mark.proof
def test_kept_super_weights_decide_over_a_real_model(
    tmp_path: Path, claim: Callable[[str], None]
) -> None:
    folder = smollm2_folder()
    confirmed = tuple(
        SuperWeight(NAME, place, "0x0", 0.0, "confirmed", {}, loss_change=1.0) for place in KEPT
    )
    tokens = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    found = {}
    for name, weights in (("lost", ()), ("kept", confirmed)):
        with fingerprint(folder) as made:
            salience = Salience(super_weights=weights)
            document = msgspec.structs.replace(made.document, salience=salience)
            ternarize(
                folder, tmp_path / name, layers=NAME, manifest=replace(made, document=document),
                keep_super_weights=bool(weights),
            )  # fmt: skip
        model = load_ternary(tmp_path / name)
        with torch.no_grad():
            found[name] = math.exp(model(tokens, labels=tokens).loss)
    claim(
        f"ternarize on SmolLM2's layer 11: perplexity {found['lost']:.0f}, with its super weights "
        f"kept {found['kept']:.1f}"
    )
    assert found["lost"] > 10_000
    assert found["kept"] < 60
