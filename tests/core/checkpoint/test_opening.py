"""open_checkpoint(): recognition by content, the choice of files in a folder, nothing leaked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import weightguard
from tests.checkpoints import (
    Tensors,
    random_tensor,
    safetensors_bytes,
    write_safetensors,
    write_sharded,
)
from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.files import Folder
from weightguard.checkpoint.recognise import recognise
from weightguard.errors import CheckpointError

A: Tensors = {"a": random_tensor("F32", (4, 64))}
B: Tensors = {"b": random_tensor("F32", (4, 64), 1)}
INDEX = "model.safetensors.index.json"


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def names(path: Path) -> list[str]:
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.findings == ()
        return [tensor.name for tensor in checkpoint.tensors]


def rule_of(path: Path) -> str:
    before = descriptors()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert descriptors() == before
    return caught.value.finding.rule


def padded(length: int) -> bytes:
    """Return a safetensors file whose header has ``length`` bytes."""
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    return length.to_bytes(8, "little") + text + b" " * (length - len(text)) + b"x"


SAFETENSORS_LENGTHS = {
    "begins-with-a-brace": 0x7B,
    "begins-with-space": 0x2020 + 0x7B,
    "spells-json": int.from_bytes(b'{"\n', "little"),
}


@pytest.mark.parametrize("length", SAFETENSORS_LENGTHS.values(), ids=SAFETENSORS_LENGTHS)
def test_a_length_that_looks_like_json(tmp_path: Path, length: int) -> None:
    (tmp_path / "m").write_bytes(padded(length))
    assert names(tmp_path / "m") == ["a"]


def test_a_length_that_spells_a_zip_or_pickle(tmp_path: Path) -> None:
    for magic in (b"PK\x03\x04", b"\x80\x02\x8a\x01", b"\x80\x04\x95\x00"):
        head = magic + bytes(4) + b'{"a":'
        (tmp_path / "m").write_bytes(head)
        folder = Folder(tmp_path)
        assert recognise(folder.open("m")) == "safetensors"
        folder.close()


@pytest.mark.parametrize(
    "text", ['{"meta":{"x":1}}', '\n\n{"weight_map":{}}', '{"weight_map":{}}', " " * 7 + "{{"]
)
def test_json_with_a_brace_at_the_eighth_byte_is_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").write_text(text)
    folder = Folder(tmp_path)
    assert recognise(folder.open("m")) == "index"
    folder.close()


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.gguf", A)
    assert names(tmp_path / "model.gguf") == ["a"]
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "safetensors"


def test_safetensors_win_over_torch_files(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", A)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even torch")
    (tmp_path / "pytorch_model.bin.index.json").write_text("not even JSON")
    (tmp_path / "model.gguf").touch()
    (tmp_path / "model.onnx").touch()
    assert names(tmp_path) == ["a"]


def test_several_files_without_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x-2.safetensors", B)
    write_safetensors(tmp_path / "x-1.safetensors", A)
    assert names(tmp_path) == ["a", "b"]
    write_safetensors(tmp_path / "x-3.safetensors", {**A, **B})
    with open_checkpoint(tmp_path) as checkpoint:
        assert [t.name for t in checkpoint.tensors] == ["a", "b"]
        assert [f.rule for f in checkpoint.findings] == ["WG104"]
        assert checkpoint.findings[0].location.file == "x-3.safetensors"


@pytest.mark.parametrize("write_index", [False, True])
def test_training_state_is_no_weights(tmp_path: Path, write_index: bool) -> None:
    if write_index:
        write_sharded(tmp_path, [A, B])
    else:
        write_safetensors(tmp_path / "model.safetensors", {**A, **B})
    for name in (
        "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin",
        "rng_state.pth", "rng_state_0.pth", "scaler.pt", "trainer_state.json",
        "tokenizer.json", "README.md", "onnx.txt",
    ):  # fmt: skip
        (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    assert names(tmp_path) == ["a", "b"]


def test_a_manifest_beside_the_weights_is_no_weights(tmp_path: Path) -> None:
    write_sharded(tmp_path, [A, B])
    (tmp_path / "model.weightguard.json").write_text('{"schema": 1}')
    write_safetensors(tmp_path / "model-0123456789abcdef.sidecar", A)
    assert names(tmp_path) == ["a", "b"]


def test_our_own_manifest_beside_the_weights_is_no_weights(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", A)
    weightguard.fingerprint(tmp_path).write(tmp_path / "model.weightguard.json")
    report = weightguard.audit(tmp_path, manifest=tmp_path / "model.weightguard.json")
    assert report.complete
    assert [f for f in report.findings if f.rule.startswith(("WG1", "WG4"))] == []


def test_a_named_file_may_be_a_link_to_anywhere(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    write_safetensors(tmp_path / "far" / "real", A)
    (tmp_path / "near" / "model.safetensors").symlink_to("../far/real")
    assert names(tmp_path / "near" / "model.safetensors") == ["a"]
    assert rule_of(tmp_path / "near") == "WG110"


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    write_sharded(tmp_path, [A, B])
    (tmp_path / "data").mkdir()
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.rename(tmp_path / "data" / "second")
    shard.symlink_to("data/second")
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / INDEX) == ["a", "b"]


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    write_sharded(tmp_path / "real", [A, B])
    (tmp_path / "alias").symlink_to("real")
    assert names(tmp_path / "alias") == ["a", "b"]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sharded(tmp_path, [A, B])
    monkeypatch.chdir(tmp_path)
    for path in (".", INDEX, f"./{INDEX}"):
        assert names(Path(path)) == ["a", "b"]
    assert names(Path("model-00001-of-00002.safetensors")) == ["a"]


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name in ("missing", "loop", "loop/x", "file/x", "no/x", "x" * 300, "nul\0"):
        assert rule_of(tmp_path / name) == "WG122"
    assert rule_of(Path("/dev/null")) == "WG111"
    assert rule_of(Path("/dev/zero")) == "WG111"


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    program = (
        "import sys, weightguard\n"
        "for path in sys.argv[1:]:\n"
        "    print(*[f.rule for f in weightguard.audit(path).findings])\n"
    )
    paths = [str(tmp_path), str(tmp_path / "model.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", program, *paths],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.split() == ["WG111", "WG111"], done.stderr


def test_nothing_is_left_open(tmp_path: Path) -> None:
    write_sharded(tmp_path, [A, B, {"c": A["a"]}])
    before = descriptors()
    with open_checkpoint(tmp_path):
        assert descriptors() == before + 4
    assert descriptors() == before
    last = tmp_path / "model-00003-of-00003.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    assert rule_of(tmp_path) == "WG102"
    last.write_bytes(b"?")
    assert rule_of(tmp_path) == "WG101"


def test_hostile_names_are_reported_escaped_and_cut(tmp_path: Path) -> None:
    hostile = ["\x1b[2J", "a\nb", "\u202ex", "w" * 5000, "\x00", "\u2028"]
    honest = ["model.layers.0.weight", "größe", "权重", "a b", "a|b", "<script>", "::error"]
    tensors: Tensors = {name: ("U8", (8,), bytes(8)) for name in hostile + honest}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    with open_checkpoint(tmp_path) as checkpoint:
        assert {f.rule for f in checkpoint.findings} == {"WG115"}
        assert {f.location.tensor for f in checkpoint.findings} == set(hostile)
        assert all(f.message.isprintable() and len(f.message) < 300 for f in checkpoint.findings)


def test_many_hostile_names_are_few_findings(tmp_path: Path) -> None:
    tensors: Tensors = {f"{n}\n": ("U8", (1,), b"x") for n in range(3000)}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    with open_checkpoint(tmp_path) as checkpoint:
        assert 0 < len(checkpoint.findings) <= 100


@pytest.mark.parametrize("size", range(9))
def test_the_shortest_files(tmp_path: Path, size: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(A)[:size])
    assert rule_of(tmp_path) in ("WG101", "WG102")
    assert rule_of(tmp_path / "model.safetensors") in ("WG101", "WG102")


@pytest.mark.parametrize(
    "name", ["\x1b[31mx.safetensors", "a\nb.safetensors", "\udc80.safetensors"]
)
def test_a_hostile_file_name_is_one_warning_by_folder_and_by_name(
    tmp_path: Path, name: str
) -> None:
    write_safetensors(tmp_path / name, A)
    for path in (tmp_path, tmp_path / name):
        report = weightguard.audit(path, ignore=["WG2", "WG3"], file_digests=True)
        assert report.complete
        (found,) = report.findings
        assert (found.rule, found.severity, found.location.file) == ("WG115", "warning", name)
        assert found.message.isprintable()
