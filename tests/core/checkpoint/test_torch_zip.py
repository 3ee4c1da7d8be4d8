"""PyTorch zip checkpoints: what torch.save writes is what we read, with torch as the oracle."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import CheckpointError, audit, fingerprint, open_checkpoint, verify
from weightguard.checkpoint import Checkpoint

BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)

PLAIN: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu, torch.complex64, torch.complex128, torch.bool,
        torch.int8, torch.int16, torch.int32, torch.int64,
        torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    )
}  # fmt: skip

VIEWS: dict[str, Callable[[], torch.Tensor]] = {
    "transposed": lambda: BASE.T,
    "sliced rows": lambda: BASE[1:3],
    "sliced columns": lambda: BASE[:, 2:5],
    "stepped": lambda: BASE[::2, ::3],
    "expanded": lambda: BASE[:1].expand(7, 6),
    "permuted": lambda: torch.arange(120).reshape(2, 3, 4, 5).permute(3, 1, 0, 2),
    "scalar": lambda: torch.tensor(3.5),
    "scalar of a view": lambda: BASE[2, 3],
    "empty": lambda: torch.empty(0, 5),
    "large transposed": lambda: torch.randn(700, 900).T,
    "channels last": lambda: torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
}


def saved(tmp_path: Path, value: Any) -> Checkpoint:
    torch.save(value, tmp_path / "model.pt")
    return open_checkpoint(tmp_path / "model.pt")


def raw(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


@pytest.mark.parametrize("name", PLAIN)
def test_every_dtype(tmp_path: Path, name: str) -> None:
    values = torch.randint(0, 2, (3, 8)).to(PLAIN[name])
    with saved(tmp_path, {"w": values}) as checkpoint:
        (tensor,) = checkpoint.tensors
        assert tensor.shape == (3, 8)
        assert tensor.read() == raw(values)
        assert checkpoint.findings == ()


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_has_its_canonical_bytes(tmp_path: Path, name: str) -> None:
    values = VIEWS[name]()
    with saved(tmp_path, {"w": values, "base": BASE}) as checkpoint:
        tensor = next(t for t in checkpoint.tensors if "w" in (t.name, *t.aliases))
        assert tensor.shape == tuple(values.shape)
        assert tensor.read() == raw(values)
        if tensor.nbytes > 8:
            assert tensor.read(3, tensor.nbytes - 2) == raw(values)[3:-2]
        assert checkpoint.findings == ()


def test_parameters_and_modules_state(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    with saved(tmp_path, model.state_dict()) as checkpoint:
        found = {tensor.name: tensor.read() for tensor in checkpoint.tensors}
        assert found == {name: raw(value) for name, value in model.state_dict().items()}
    with saved(tmp_path, dict(model.named_parameters())) as checkpoint:
        assert {t.name for t in checkpoint.tensors} == set(dict(model.named_parameters()))


def test_tied_tensors_are_recorded_once(tmp_path: Path) -> None:
    shared = torch.randn(5, 5)
    with saved(tmp_path, {"lm_head": shared, "embed": shared, "other": shared.T}) as checkpoint:
        names = {tensor.name: tensor.aliases for tensor in checkpoint.tensors}
        assert names == {"embed": ("lm_head",), "other": ()}


def test_nested_containers_give_dotted_names(tmp_path: Path) -> None:
    value = {"state_dict": {"a": BASE}, "history": [BASE + 1, (BASE + 2,)], "epoch": 3, 7: BASE + 3}
    with saved(tmp_path, value) as checkpoint:
        names = {tensor.name for tensor in checkpoint.tensors}
        assert names == {"state_dict.a", "history.0", "history.1.0", "7"}


def test_an_optimizer_state(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    with saved(tmp_path, optimizer.state_dict()) as checkpoint:
        assert "state.0.exp_avg" in {tensor.name for tensor in checkpoint.tensors}
        assert checkpoint.findings == ()


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
def test_quantised_tensors_are_their_integers_and_what_scales_them(tmp_path: Path) -> None:
    values = torch.quantize_per_tensor(torch.randn(4, 6), 0.1, 3, torch.qint8)
    with saved(tmp_path, {"w": values}) as checkpoint:
        found = {tensor.name: tensor for tensor in checkpoint.tensors}
        assert set(found) == {"w", "w.scale", "w.zero_point"}
        assert (found["w"].dtype.name, found["w"].shape) == ("I8", (4, 6))
        assert found["w"].read() == raw(values.int_repr())
        assert found["w.scale"].read() == struct.pack("<d", values.q_scale())
        assert found["w.zero_point"].read() == struct.pack("<q", 3)
    assert audit(tmp_path / "model.pt").findings == ()


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
def test_quantisation_by_channel(tmp_path: Path) -> None:
    scales, zeros = torch.rand(6, dtype=torch.float64) + 0.5, torch.arange(6)
    values = torch.quantize_per_channel(torch.randn(4, 6), scales, zeros, 1, torch.qint8)
    with saved(tmp_path, {"w": values}) as checkpoint:
        found = {tensor.name: tensor for tensor in checkpoint.tensors}
        assert set(found) == {"w", "w.scale", "w.zero_point", "w.axis"}
        assert found["w.scale"].read() == raw(scales)
        assert found["w.zero_point"].read() == raw(zeros)
        assert found["w.axis"].read() == struct.pack("<q", 1)
        assert checkpoint.findings == ()


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
def test_the_same_integers_under_another_scale_are_other_weights(tmp_path: Path) -> None:
    integers = torch.randint(-50, 50, (4, 4)).float()
    for name, scale in (("a", 0.1), ("b", 100.0)):
        values = torch.quantize_per_tensor(integers * scale, scale, 0, torch.qint8)
        torch.save({"w": values}, tmp_path / f"{name}.pt")
    with fingerprint(tmp_path / "a.pt") as manifest:
        assert verify(tmp_path / "a.pt", manifest).findings == ()
        (found,) = verify(tmp_path / "b.pt", manifest).findings
    assert (found.rule, found.location.tensor) == ("WG401", "w.scale")


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")
def test_a_scale_whose_name_is_taken_gets_another(tmp_path: Path) -> None:
    values = torch.quantize_per_tensor(torch.randn(4, 6), 0.1, 3, torch.qint8)
    for state in ({"w": values, "w.scale": BASE}, {"w.scale": BASE, "w": values}):
        with saved(tmp_path, state) as checkpoint:
            assert checkpoint.findings == ()
            names = {tensor.name for tensor in checkpoint.tensors}
            assert names == {"w", "w.scale", "w.scale~2", "w.zero_point"}


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (torch.eye(3).to_sparse(), "to_dense"),
        (torch.randn(3, dtype=torch.complex64).conj(), "resolve_conj"),
        (torch.randn(3, dtype=torch.complex64).conj().imag, "resolve_neg"),
        (torch.empty(3, device="meta"), "loaded"),
    ],
)
def test_what_is_not_read_is_said_and_counted(
    tmp_path: Path, value: torch.Tensor, remedy: str
) -> None:
    with saved(tmp_path, {"w": value, "plain": BASE}) as checkpoint:
        (found,) = checkpoint.findings
        assert (found.rule, found.location.tensor) == ("WG119", "w")
        assert found.message.startswith("'w' is a ")
        assert remedy in found.remedy
        assert [tensor.name for tensor in checkpoint.tensors] == ["plain"]
        assert checkpoint.unread == 1
    coverage = audit(tmp_path / "model.pt").coverage
    assert (coverage.tensors_checked, coverage.tensors_total, coverage.tensors_unread) == (1, 2, 1)
    with pytest.raises(CheckpointError):
        fingerprint(tmp_path / "model.pt")


def test_a_damaged_record_names_the_tensors_in_it(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    names = ["b", "a", *(f"t{n}" for n in range(10))]
    torch.save({name: BASE[n % 4] for n, name in enumerate(names)}, path)
    with open_checkpoint(path) as checkpoint:
        offset = checkpoint.tensors[0].offset
    assert offset is not None
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    (found,) = audit(path).findings
    assert (found.rule, found.location.tensor) == ("WG113", "a")
    assert found.evidence["count"] == 12
    assert found.evidence["tensors"] == sorted(names)[:8]
    assert "'a' and 11 more tensors" in found.message


def test_a_whole_module_is_refused_and_not_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        saved(tmp_path, torch.nn.Linear(2, 2))
    assert caught.value.finding.rule == "WG112"
    assert "torch.nn.modules.linear.Linear" in caught.value.finding.message


@pytest.mark.parametrize("legacy", [True, False])
def test_old_formats_and_scripts_are_refused_with_a_hint(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "model.pt"
    if legacy:
        torch.save({"w": BASE}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert caught.value.finding.rule == "WG114"
    assert "save" in caught.value.finding.remedy.lower()


def test_one_flipped_data_bit_contradicts_its_crc(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.randn(64, 64), "v": torch.randn(10)}, path)
    with open_checkpoint(path) as checkpoint:
        tensor = next(t for t in checkpoint.tensors if t.name == "w")
        assert tensor.offset is not None
        offset = tensor.offset
    assert audit(path).findings == ()
    data = bytearray(path.read_bytes())
    data[offset + 1001] ^= 1
    path.write_bytes(data)
    torch.load(path)
    (found,) = audit(path).findings
    assert (found.rule, found.location.offset) == ("WG113", offset)


def test_sharded_bin_folder(tmp_path: Path) -> None:
    first, second = {"a": BASE}, {"b": BASE + 1}
    torch.save(first, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save(second, tmp_path / "pytorch_model-00002-of-00002.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        '{"metadata": {"total_size": 192}, "weight_map": {'
        '"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}'
    )
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "torch"
        assert {t.name: t.read() for t in checkpoint.tensors} == {
            "a": raw(BASE),
            "b": raw(BASE + 1),
        }
        assert checkpoint.findings == ()


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    torch.save({"w": BASE}, tmp_path / "model.pt")
    script = (
        "import sys, weightguard; weightguard.audit(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.pt")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_both_formats_in_a_folder_prefer_safetensors(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"w": random_tensor("F32", (4, 4))})
    torch.save({"w": BASE}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "safetensors"
