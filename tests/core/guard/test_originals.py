"""Originals are proved by their records' digests, and are the same when they are read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import write_safetensors
from weightguard import Manifest, fingerprint
from weightguard.guard import GoldenCheckpoint
from weightguard.guard.baseline import Key
from weightguard.guard.originals import ChangedError, Proved

WEIGHTS = np.random.default_rng(2).standard_normal((900, 1000)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tensors = {"w": ("F32", WEIGHTS.shape, WEIGHTS.tobytes()), "v": ("F32", (1,), bytes(4))}
    return write_safetensors(tmp_path / "m.safetensors", tensors)


@pytest.fixture
def manifest(path: Path) -> Iterator[Manifest]:
    with fingerprint(path) as made:
        yield made


@pytest.fixture
def golden(manifest: Manifest, path: Path) -> Iterator[GoldenCheckpoint]:
    copy = GoldenCheckpoint(path)
    yield copy
    copy.close()


def overwrite(path: Path, word: int) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(WEIGHTS.tobytes()[:64]) + 4 * word
    data[at] ^= 1
    with path.open("r+b") as file:  # the same file, which is open already
        file.write(data)


def test_any_range_is_the_attested_one(golden: GoldenCheckpoint, manifest: Manifest) -> None:
    view = Proved(golden, manifest, Key()).origin("w")
    assert view is not None
    data = WEIGHTS.tobytes()
    for start, stop in [(0, 0), (5, 9), ((1 << 20) - 3, (1 << 20) + 5), (0, len(data)), (7, 8)]:
        assert view.read(start, stop) == data[start:stop]


def test_what_is_not_the_attested_tensor_is_none(
    golden: GoldenCheckpoint, manifest: Manifest, path: Path
) -> None:
    proved = Proved(golden, manifest, Key())
    assert proved.origin("nothing") is None
    overwrite(path, 900 * 1000 - 1)
    assert proved.origin("w") is None


def test_what_changes_after_the_proof_is_not_read(
    golden: GoldenCheckpoint, manifest: Manifest, path: Path
) -> None:
    view = Proved(golden, manifest, Key()).origin("w")
    assert view is not None
    overwrite(path, 300_000)
    assert view.read(0, 64) == WEIGHTS.tobytes()[:64]
    with pytest.raises(ChangedError, match="'w' changed while it was read"):
        view.read(1_200_000, 1_200_004)
