"""A manifest depends on the weights alone: not on threads, sharding, or order."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import Tensors, random_tensor, write_safetensors, write_sharded
from weightguard import CheckpointError, Manifest, fingerprint, open_checkpoint
from weightguard.manifest import encode
from weightguard.scan import stream
from weightguard.tensor import DTYPES as TYPES

DTYPES = ["BF16", "F16", "F32", "F64", "I8", "F8_E5M2", "F4", "F6_E2M3", "C64", "U16"]


@st.composite
def models(draw: st.DrawFn) -> Tensors:
    names = draw(
        st.lists(
            st.text("abcdef.0123", min_size=1, max_size=8), unique=True, min_size=1, max_size=6
        )
    )
    tensors = {}
    for seed, name in enumerate(names):
        dtype = draw(st.sampled_from(DTYPES))
        shape = tuple(draw(st.lists(st.integers(0, 40), max_size=3)))
        if dtype in ("F4", "F6_E2M3"):
            shape = (*shape, 4)
        tensors[name] = random_tensor(dtype, shape, seed)
    return tensors


def written(path: Path, threads: int) -> tuple[bytes, bytes]:
    with fingerprint(path, threads=threads) as manifest, tempfile.TemporaryFile() as file:
        manifest.sidecar.copy_to(file)
        file.seek(0)
        return encode(manifest.document), file.read()


@settings(max_examples=60, deadline=None)
@given(models(), st.integers(1, 4), st.integers(1, 5), st.randoms())
def test_same_manifest_for_any_sharding_and_threads(
    tensors: Tensors, shards: int, threads: int, shuffle: object
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = written(write_safetensors(folder / "whole.safetensors", tensors), 1)
        order = list(tensors)
        shuffle.shuffle(order)  # type: ignore[attr-defined]
        parts = [{n: tensors[n] for n in order[k::shards]} for k in range(shards)]
        assert written(write_sharded(folder / "sharded", parts), threads) == whole


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_blocks_of_one_tensor_shared_by_threads(tmp_path: Path, threads: int) -> None:
    tensors = {
        "large": random_tensor("BF16", (2049, 1111), 1),
        "vector": random_tensor("F32", (700_001,), 2),
        "long_rows": random_tensor("I8", (2, 1_500_000), 3),
    }
    path = write_safetensors(tmp_path / "m.safetensors", tensors)
    assert written(path, threads) == written(path, 1)


def test_a_failing_read_stops_every_worker(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", {"w": random_tensor("F32", (2000, 1500))})
    with open_checkpoint(path) as checkpoint:
        path.write_bytes(path.read_bytes()[: 5 << 20])
        with pytest.raises(CheckpointError) as caught:
            stream.scan_tensors(checkpoint.tensors, lambda _: [], digest="blake3", threads=4)
    assert caught.value.finding.rule == "WG102"


def test_written_manifest_reads_back(tmp_path: Path) -> None:
    tensors = {"a": random_tensor("BF16", (70, 70), 1)}
    path = write_safetensors(tmp_path / "m.safetensors", tensors)
    target = tmp_path / "m.weightguard.json"
    with fingerprint(path) as made:
        sidecar = made.write(target)
        with Manifest.read(target) as read:
            assert read.document.tensors == made.document.tensors
            for name in ("0/blocks", "0/residues", "0/row_absmax", "0/column_absmax"):
                np.testing.assert_array_equal(read.sidecar.read(name), made.sidecar.read(name))
    assert sidecar.parent == tmp_path


SAFETENSORS = (
    "BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "U16", "I16", "F16", "BF16", "U32",
    "I32", "F32", "U64", "I64", "F64", "C64", "F4", "F6_E2M3", "F6_E3M2",
)  # fmt: skip


@pytest.mark.parametrize("dtype", SAFETENSORS)
@pytest.mark.parametrize("fill", ["random", "zeros", "ones", "few", "none"])
def test_no_manifest_contradicts_itself(tmp_path: Path, dtype: str, fill: str) -> None:
    shape = {"few": (4,), "none": (0, 4)}.get(fill, (70, 68))
    size = TYPES[dtype].nbytes(math.prod(shape))
    data = np.random.default_rng(3).bytes(size)
    data = {"zeros": bytes(size), "ones": b"\xff" * size}.get(fill, data)
    path = write_safetensors(tmp_path / "m.safetensors", {"w": (dtype, shape, data)})
    with fingerprint(path) as made:
        made.write(tmp_path / "m.weightguard.json")
    with Manifest.read(tmp_path / "m.weightguard.json") as read:
        assert read.document.tensors == made.document.tensors


def test_rewriting_removes_only_the_replaced_sidecar(tmp_path: Path) -> None:
    target = tmp_path / "m.weightguard.json"
    bystander = tmp_path / "other-0123456789abcdef.sidecar"
    bystander.write_bytes(b"not ours")
    sidecars = []
    for seed in (1, 2):
        model = write_safetensors(
            tmp_path / "m.safetensors", {"w": random_tensor("F32", (64, 64), seed)}
        )
        with fingerprint(model) as manifest:
            sidecars.append(manifest.write(target))
    assert not sidecars[0].exists()
    assert sidecars[1].exists()
    assert bystander.exists()


def test_absmax_of_the_most_negative_integer_is_positive(tmp_path: Path) -> None:
    values = np.array([-128, 3, 5], np.int8)
    path = write_safetensors(tmp_path / "m.safetensors", {"w": ("I8", (3,), values.tobytes())})
    with fingerprint(path) as manifest:
        statistics = manifest.document.tensors["w"].statistics
    assert (statistics.absmax.value, statistics.absmax.bits) == (128, "0x80")
    assert statistics.min is not None
    assert statistics.min.value == -128


def test_a_file_name_that_json_cannot_hold_gets_no_file_digest(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "\udcff.safetensors", {"w": random_tensor("F32", (4, 64))})
    with fingerprint(tmp_path) as manifest:
        assert manifest.document.files == {}
    for place in (tmp_path, path):
        with pytest.raises(CheckpointError) as caught:
            fingerprint(place, file_digests=True)
        assert caught.value.finding.rule == "WG115"
