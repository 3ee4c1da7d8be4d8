"""Loading: what is verified is what runs, and what cannot be verified does not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.integrations.onnxruntime.models import WIDTH, everything, perceptron, saved
from weightguard import (
    CheckpointError,
    IntegrityError,
    ManifestError,
    WeightguardError,
    fingerprint,
)
from weightguard.checkpoint import open_checkpoint
from weightguard_integrations.onnxruntime import GuardedSession, source
from weightguard_integrations.onnxruntime.source import open_model

MODES = ("sealed", "inplace", "opaque")
X = {"x": np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., GuardedSession]:
    def load(path: Path, mode: str = "sealed", **more: object) -> GuardedSession:
        quiet = {"cache": tmp_path / "cache", "scrub": None}
        return GuardedSession(path, mode=mode, **{**quiet, **more})  # type: ignore[arg-type]

    return load


def flip(path: Path, offset: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def edit(path: Path, change: Callable[[TensorProto], None]) -> None:
    model = onnx.load(path, load_external_data=False)
    change(next(t for t in model.graph.initializer if t.external_data))
    path.write_bytes(model.SerializeToString())


def set_entry(key: str, value: str) -> Callable[[TensorProto], None]:
    def change(tensor: TensorProto) -> None:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value

    return change


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("external", [0, 2])
def test_answers_are_those_of_a_plain_session(
    tmp_path: Path, load: Callable[..., GuardedSession], mode: str, external: int
) -> None:
    path = saved(everything(), tmp_path / "model", external=external)
    session = load(path, mode, manifest=fingerprint(path))
    # buffers of ours keep Gemm from packing, so that its sums are taken in another order
    exact = mode != "inplace"
    plain = ort.InferenceSession(path)
    for count in (1, 3, 7):
        for choice in (True, False):
            feed = {"ids": np.arange(count), "choice": np.array(choice)}
            got, expected = session.run(None, feed)[0], plain.run(None, feed)[0]
            assert np.array_equal(got, expected) if exact else np.allclose(got, expected, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("external", [0, 2])
def test_a_flipped_bit_is_refused_before_there_is_a_session(
    tmp_path: Path, load: Callable[..., GuardedSession], mode: str, external: int
) -> None:
    path = saved(perceptron(), tmp_path / "model", external=external)
    manifest = fingerprint(path)
    assert load(path, mode, manifest=manifest).run(None, X)
    victim = path.parent / "weights-0.bin" if external else path
    flip(victim, victim.stat().st_size // 2)
    with pytest.raises(IntegrityError) as caught:
        load(path, mode, manifest=manifest)
    assert [found.rule for found in caught.value.report.findings] == ["WG401"]


def test_a_changed_graph_is_refused_where_the_manifest_lists_files(
    tmp_path: Path, load: Callable[..., GuardedSession]
) -> None:
    path = saved(perceptron(), tmp_path / "model")
    with_files = fingerprint(path, file_digests=True)
    without = fingerprint(path)
    assert load(path, manifest=with_files).incidents == ()
    model = onnx.load(path)
    next(n for n in model.graph.node if n.op_type == "Tanh").op_type = "Sigmoid"
    onnx.save(model, path)
    with pytest.raises(IntegrityError, match=r"^1 finding in .*: WG407 .*\.$") as caught:
        load(path, manifest=with_files)
    assert caught.value.report.findings[0].rule == "WG407"
    # equal weights in another graph: said, since nothing vouches for how they are used
    session = load(path, manifest=without)
    assert [i.code for i in session.incidents] == ["WG910"]
    assert "graph" in session.incidents[0].finding.message
    assert session.status().ready


@pytest.mark.parametrize("mode", MODES)
def test_files_that_change_after_they_were_verified_do_not_run(
    tmp_path: Path, load: Callable[..., GuardedSession], mode: str
) -> None:
    path = saved(perceptron(), tmp_path / "model", external=1)
    session = load(path, mode, manifest=fingerprint(path))
    expected = session.run(None, X)[0]
    for file in path.parent.iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    assert np.array_equal(session.run(None, X)[0], expected)
    assert session.check().findings == ()


def test_a_private_copy_is_read_once(tmp_path: Path) -> None:
    path = saved(perceptron(), tmp_path / "model", external=2)
    with open_checkpoint(path) as checkpoint:
        before = {tensor.name: bytes(tensor.read()) for tensor in checkpoint.tensors}
    with open_model(path, private=True) as private, open_checkpoint(path) as public:
        for file in path.parent.iterdir():
            file.write_bytes(b"\xaa" * file.stat().st_size)
        assert {tensor.name: bytes(tensor.read()) for tensor in private.tensors} == before
        assert {tensor.name: bytes(tensor.read()) for tensor in public.tensors} != before
        for file in private.files:
            with pytest.raises(PermissionError):
                os.pwrite(file.fileno(), b"x", 0)


def link(path: Path, make: Callable[[Path, Path], None]) -> None:
    victim = path.parent / "weights-0.bin"
    victim.rename(path.parent / "real.bin")
    make(path.parent / "real.bin", victim)


REFUSED = {
    "symbolic link": (lambda p: link(p, lambda real, name: name.symlink_to(real)), "WG110"),
    "hard link": (lambda p: link(p, lambda real, name: name.hardlink_to(real)), "WG110"),
    "traversal": (lambda p: edit(p, set_entry("location", "../weights-0.bin")), "WG110"),
    "absolute": (lambda p: edit(p, set_entry("location", "/etc/passwd")), "WG110"),
    "out of range": (lambda p: edit(p, set_entry("offset", "10000000")), "WG106"),
    "beyond the end": (lambda p: edit(p, set_entry("offset", "131320")), "WG102"),
    "other length": (lambda p: edit(p, set_entry("length", "12")), "WG107"),
    "missing": (lambda p: (p.parent / "weights-0.bin").unlink(), "WG122"),
    "a FIFO": (
        lambda p: ((p.parent / "weights-0.bin").unlink(), os.mkfifo(p.parent / "weights-0.bin")),
        "WG111",
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", REFUSED)
def test_refused_external_data(
    tmp_path: Path, load: Callable[..., GuardedSession], case: str, mode: str
) -> None:
    damage, code = REFUSED[case]
    path = saved(perceptron(), tmp_path / "model", external=1)
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        load(path, mode)
    assert caught.value.finding.rule == code


@pytest.mark.parametrize("mode", MODES)
def test_overlapping_external_data_is_refused(
    tmp_path: Path, load: Callable[..., GuardedSession], mode: str
) -> None:
    path = saved(perceptron(), tmp_path / "model", external=1)
    edit(path, set_entry("offset", "64"))
    with pytest.raises(IntegrityError) as caught:
        load(path, mode)
    assert "WG105" in [found.rule for found in caught.value.report.findings]


@pytest.mark.parametrize("mode", MODES)
def test_truncated_and_foreign_files(
    tmp_path: Path, load: Callable[..., GuardedSession], mode: str
) -> None:
    path = saved(perceptron(), tmp_path / "model")
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as caught:
            load(path, mode)
        assert str(caught.value).endswith(f". {caught.value.finding.remedy}")
    path.write_bytes(whole)
    with pytest.raises(WeightguardError, match="give a path"):
        GuardedSession(whole)
    with pytest.raises(WeightguardError):
        load(path.parent / "other.onnx", mode)
    with pytest.raises(WeightguardError, match=r"is a folder: give the \.onnx file"):
        load(path.parent, mode)


def test_a_wrong_manifest(tmp_path: Path, load: Callable[..., GuardedSession]) -> None:
    path = saved(perceptron(), tmp_path / "model")
    other = fingerprint(saved(perceptron(seed=9), tmp_path / "other"))
    for mode in MODES:
        with pytest.raises(IntegrityError):
            load(path, mode, manifest=other)
    with pytest.raises(ManifestError):
        load(path, manifest=tmp_path / "none.weightguard.json")


def test_without_a_manifest_it_is_said(tmp_path: Path, load: Callable[..., GuardedSession]) -> None:
    path = saved(perceptron(), tmp_path / "model")
    assert [i.code for i in load(path).incidents] == ["WG910"]


def test_locations_spelled_otherwise(tmp_path: Path, load: Callable[..., GuardedSession]) -> None:
    path = saved(perceptron(), tmp_path / "model", external=1)
    expected = ort.InferenceSession(path).run(None, X)[0]
    edit(path, set_entry("location", "./weights-0.bin"))
    for mode in MODES:
        assert np.allclose(load(path, mode).run(None, X)[0], expected, atol=1e-5)


def test_a_missing_provider(tmp_path: Path, load: Callable[..., GuardedSession]) -> None:
    path = saved(perceptron(), tmp_path / "model")
    with pytest.raises(WeightguardError, match="has no 'CUDAExecutionProvider' here"):
        load(path, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(WeightguardError, match="mode='opaque'"):
        load(path, providers=["AzureExecutionProvider", "CPUExecutionProvider"])


def test_importing_the_package_loads_no_runtime() -> None:
    code = (
        "import sys, weightguard_integrations.onnxruntime as m; "
        "assert 'onnxruntime' not in sys.modules; m.GuardedSession"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("mode", MODES)
def test_weights_too_long_for_a_message(
    tmp_path: Path,
    load: Callable[..., GuardedSession],
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensors beyond 2 GB are mapped by the runtime; here, those beyond 1 kB."""
    monkeypatch.setattr(source, "MAX_EMBEDDED_BYTES", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = saved(perceptron(), tmp_path / "model", external=2)
    expected = ort.InferenceSession(path).run(None, X)[0]
    session = load(path, mode, manifest=fingerprint(path))
    assert np.allclose(session.run(None, X)[0], expected, atol=1e-5)
    assert not list(tmp_path.glob("weightguard-*"))
