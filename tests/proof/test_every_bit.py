"""Every single bit of a small checkpoint, flipped in turn, is found and located."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import Manifest, fingerprint, open_checkpoint, verify
from weightguard.scan.formats import FORMATS

TENSORS = {
    "bf16": random_tensor("BF16", (2, 64), 1),
    "f16": random_tensor("F16", (80,), 2),
    "f32": random_tensor("F32", (2, 2, 16), 3),
    "f64": random_tensor("F64", (17,), 4),
    "c64": random_tensor("C64", (9,), 5),
    "i8": random_tensor("I8", (2, 65), 6),
    "f8": random_tensor("F8_E4M3", (3, 11), 7),
    "f4": random_tensor("F4", (66,), 8),
    "f6": random_tensor("F6_E3M2", (68,), 9),
    "bool": random_tensor("BOOL", (7,), 10),
    "scalar": random_tensor("F32", (), 11),
}


@pytest.mark.proof
def test_every_flipped_bit_is_found_and_located_to_its_element(
    tmp_path: Path, claim: Callable[[str], None]
) -> None:
    """A flip in each tensor at a time: to every tensor it is the only one."""
    path = write_safetensors(tmp_path / "model.safetensors", TENSORS)
    clean = path.read_bytes()
    with fingerprint(path) as manifest, open_checkpoint(path) as checkpoint:
        flips = 0
        for bit in range(8 * max(tensor.nbytes for tensor in checkpoint.tensors)):
            damaged = bytearray(clean)
            names = set()
            for tensor in checkpoint.tensors:
                if bit < 8 * tensor.nbytes:
                    assert tensor.offset is not None
                    damaged[tensor.offset + bit // 8] ^= 1 << bit % 8
                    names.add(tensor.name)
            path.write_bytes(damaged)
            expect_located(path, manifest, names, bit)
            flips += len(names)
        path.write_bytes(clean)
        assert verify(path, manifest, threads=1).findings == ()
    claim(f"{flips} of {flips} single-bit flips found and located to the exact element")
    assert flips == sum(8 * len(data) for _, _, data in TENSORS.values())


def expect_located(path: Path, manifest: Manifest, names: set[str], bit: int) -> None:
    findings = verify(path, manifest, threads=1).findings
    assert len(findings) == len(names)
    assert {found.location.tensor for found in findings} == names
    for found in findings:
        name = str(found.location.tensor)
        (element,) = found.evidence["elements"]
        scalar_bits = FORMATS[TENSORS[name][0] if name != "c64" else "F32"].bits
        scalar = bit // scalar_bits
        flat = scalar // 2 if name == "c64" else scalar
        assert found.rule == "WG401"
        assert element["confirmed"]
        assert element["flipped_bits"] == [bit % scalar_bits]
        assert tuple(element["index"]) == unravel(flat, TENSORS[name][1])


def unravel(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    index: tuple[int, ...] = ()
    for size in reversed(shape):
        flat, position = divmod(flat, size)
        index = (position, *index)
    return index
