"""Parity: which blocks share a group, and that the sums are those of a plain XOR."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import random_tensor, write_safetensors
from tests.damaged import MIB, attest, parity_of, write_model
from weightguard import Manifest, ManifestError, fingerprint
from weightguard import parity as module
from weightguard.layout import decode_layout
from weightguard.parity import Grouping
from weightguard.sidecar import Sidecar


@given(st.integers(0, 5000), st.integers(1, 7))
def test_every_block_has_one_group_of_bounded_size(nbytes: int, group_blocks: int) -> None:
    grouping = Grouping(nbytes, 3, group_blocks)
    seen = [block for group in range(grouping.groups) for block in grouping.members(group)]
    assert sorted(seen) == list(range(grouping.blocks))
    for group in range(grouping.groups):
        members = grouping.members(group)
        assert 1 <= len(members) <= group_blocks
        assert all(grouping.group_of(block) == group for block in members)
        assert grouping.group_length(group) == max(map(grouping.block_length, members))
    assert grouping.parity_bytes == sum(map(grouping.group_length, range(grouping.groups)))


@given(st.integers(1024, 9000), st.data())
def test_a_burst_of_32_blocks_touches_each_group_once(blocks: int, data: st.DataObject) -> None:
    grouping = Grouping(blocks * MIB - 5)
    first = data.draw(st.integers(0, blocks - 32))
    groups = [grouping.group_of(block) for block in range(first, first + 32)]
    assert len(set(groups)) == len(groups)


def test_parity_costs_a_32nd_of_a_large_model() -> None:
    nbytes = 140 * 10**9
    assert Grouping(nbytes).parity_bytes / nbytes == pytest.approx(1 / 32, rel=1e-3)


@pytest.mark.parametrize("pending", [1, 2, 128])
def test_sums_are_a_plain_xor_however_few_groups_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pending: int
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING_GROUPS", pending)
    tensors = {
        "z": random_tensor("U8", (34 * MIB + 5,), 1),
        "m": random_tensor("F32", (7,), 2),
        "a": random_tensor("U8", (MIB,), 3),
    }
    model = write_safetensors(tmp_path / "m.safetensors", tensors)
    stream = np.frombuffer(b"".join(t[2] for t in tensors.values()), np.uint8)
    with fingerprint(model, parity=True, threads=3) as made:
        parity = made.open_parity()
        assert parity is not None
        for group in range(parity.grouping.groups):
            expected = np.zeros(MIB, np.uint8)
            for block in parity.grouping.members(group):
                piece = stream[block * MIB : (block + 1) * MIB]
                expected[: len(piece)] ^= piece
            assert (parity.columns(group, 0, MIB) == expected).all()


def test_a_manifest_without_parity_is_what_it_was(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    plain = attest(model, tmp_path / "plain.weightguard.json")
    attest(model, tmp_path / "parity.weightguard.json", parity=True)
    document = json.loads(plain.read_text())
    assert "parity" not in document
    other = json.loads((tmp_path / "parity.weightguard.json").read_text())
    record = other.pop("parity")
    other["sidecar"].pop("name")
    document["sidecar"].pop("name")
    assert other == document
    assert record["size"] == (tmp_path / record["name"]).stat().st_size


def test_parity_is_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    digests = set()
    for threads in (1, 2, 5):
        with fingerprint(model, parity=True, threads=threads) as made:
            digests.add(made.document.parity.digest)  # type: ignore[union-attr]
    assert len(digests) == 1


def test_parity_goes_where_its_manifest_goes_and_leaves_with_it(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    first = attest(model, tmp_path / "x.weightguard.json", parity=True)
    old = parity_of(first)
    (tmp_path / "elsewhere").mkdir()
    with Manifest.read(first) as manifest:
        manifest.write(tmp_path / "elsewhere" / "y.weightguard.json")
        manifest.write(first)
    assert parity_of(tmp_path / "elsewhere" / "y.weightguard.json").read_bytes() == old.read_bytes()
    attest(model, first)
    assert not old.exists()


@pytest.mark.parametrize("how", ["missing", "flipped", "cut", "empty"])
def test_altered_parity_is_refused(tmp_path: Path, how: str) -> None:
    manifest = attest(write_model(tmp_path / "m"), tmp_path / "m.weightguard.json", parity=True)
    path = parity_of(manifest)
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.unlink()
    if how != "missing":
        path.write_bytes({"flipped": data, "cut": data[:-1], "empty": b""}[how])
    with Manifest.read(manifest) as read, pytest.raises(ManifestError, match="parity"):
        read.open_parity()


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "weightguard-layout-v2"},
        {"order": [0, 0]},
        {"order": [0]},
        {"files": [{"name": "../x", "size": 9, "tensors": []}]},
        {"files": [{"name": "/x", "size": 9, "tensors": []}]},
        {"files": [{"name": "x", "size": 9, "tensors": [[0, 0]]}]},
        {"files": [{"name": "x", "size": 900, "tensors": [[7, 0]]}]},
        {"files": [{"name": "x", "size": -1, "tensors": []}]},
        {
            "files": [
                {"name": "x", "size": 1, "tensors": []},
                {"name": "x", "size": 1, "tensors": []},
            ]
        },
    ],
)
def test_a_layout_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    tensors = {"a": random_tensor("F32", (9,)), "b": random_tensor("F32", (2,))}
    model = write_safetensors(tmp_path / "m.safetensors", tensors)
    with fingerprint(model, parity=True) as made:
        views, parity = made.views(), made.open_parity()
        assert parity is not None
        sound = json.loads(Sidecar.read(parity.sidecar, "layout").tobytes())
    assert decode_layout(json.dumps(sound).encode(), views).order == (0, 1)
    with pytest.raises(ManifestError):
        decode_layout(json.dumps({**sound, **change}).encode(), views)
