"""Recognising files by content, damaged ones too, and saying what the others are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import Tensors, safetensors_bytes
from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.recognise import recognise
from weightguard.errors import CheckpointError

A: Tensors = {"a": ("F32", (2,), bytes(range(8)))}
B: Tensors = {"b": ("U8", (3,), b"xyz")}


def test_every_flipped_bit_of_a_header_is_survived(tmp_path: Path) -> None:
    data = safetensors_bytes({**A, **B})
    path = tmp_path / "m"
    unrecognised: list[int] = []
    for bit in range(8 * (len(data) - 11)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            open_checkpoint(path).close()
        except CheckpointError as error:
            unrecognised += [bit] * (error.finding.rule == "WG101")
    # the damage is named, for the file is recognised in spite of it
    assert unrecognised == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\n <html>Sorry</html>", "web page"),
        (bytes(4096), "zeros"),
        (b"", "empty"),
        (b"something else", "no format"),
        (b'{"model_type": "llama"}', "no shard index"),
    ],
)
def test_files_that_are_no_checkpoint_say_what_they_are(
    tmp_path: Path, data: bytes, words: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path / "model.safetensors")


def test_raw_data_is_rarely_taken_for_a_checkpoint(tmp_path: Path) -> None:
    for start in (b"\x80\x02\x17", b"abcdefgh{\x03\x91", b"PKnot", b"\x08\x01\x99"):
        (tmp_path / "weights.bin").write_bytes(start + bytes(range(256)) * 2)
        file = CheckpointFile(tmp_path / "weights.bin", "weights.bin")
        assert recognise(file) is None
        file.close()
