"""Random damage in real weights: single flips, several elements of a row, and no false alarms."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.real_models import smollm2_bf16
from weightguard import Manifest, TensorView, audit, fingerprint, open_checkpoint, verify
from weightguard.compare import MAX_LOCATED_ROWS, Observed, TensorComparison
from weightguard.scan.stream import scan_tensors

SINGLE_FLIPS = 100_000
MULTI_ELEMENT = 10_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("real") / "model.safetensors"
    copy.write_bytes(smollm2_bf16().read_bytes())
    return copy


@pytest.fixture(scope="module")
def manifest(model: Path) -> Manifest:
    return fingerprint(model)


def choose_rows(
    tensors: tuple[TensorView, ...], count: int, generator: np.random.Generator
) -> list[tuple[TensorView, int]]:
    """Return ``count`` distinct rows, at most as many of a tensor as are located."""
    rows = [
        (tensor, row)
        for tensor in tensors
        for row in generator.permutation(tensor.layout.rows)[:MAX_LOCATED_ROWS].tolist()
    ]
    chosen = generator.permutation(len(rows))[:count]
    return [rows[number] for number in chosen.tolist()]


def observe(path: Path, manifest: Manifest) -> Observed:
    observed = Observed()
    records, numbers = manifest.document.tensors, manifest.numbers
    with open_checkpoint(path) as checkpoint:
        scan_tensors(
            checkpoint.tensors,
            lambda t: [TensorComparison(t, records[t.name], manifest, numbers[t.name], observed)],
            digest="blake3",
        )
    return observed


@pytest.mark.proof
@pytest.mark.real
def test_single_flips_are_all_located(
    model: Path, manifest: Manifest, claim: Callable[[str], None]
) -> None:
    generator = np.random.default_rng(1)
    with open_checkpoint(model) as checkpoint:
        rows = choose_rows(checkpoint.tensors, SINGLE_FLIPS, generator)
    assert len(rows) == SINGLE_FLIPS
    expected = set()
    with model.open("r+b") as file:
        for tensor, row in rows:
            column = int(generator.integers(tensor.layout.row_elements))
            bit = int(generator.integers(16))
            element = row * tensor.layout.row_elements + column
            flip(file.fileno(), tensor, element, 1 << bit)
            expected.add((tensor.name, tensor.index(element), bit))
    try:
        observed = observe(model, manifest)
    finally:
        restore(model)
    located = {
        (difference.tensor.name, element.index, element.flipped[0])
        for difference in observed.differences
        for element in difference.elements
        if element.confirmed and len(element.flipped) == 1
    }
    claim(f"{len(located & expected)} of {len(expected)} single-bit flips located and confirmed")
    assert located == expected


@pytest.mark.proof
@pytest.mark.real
def test_multi_element_corruption_is_all_found(
    model: Path, manifest: Manifest, claim: Callable[[str], None]
) -> None:
    generator = np.random.default_rng(2)
    with open_checkpoint(model) as checkpoint:
        rows = choose_rows(checkpoint.tensors, MULTI_ELEMENT, generator)
    expected: dict[str, set[int]] = {}
    with model.open("r+b") as file:
        for tensor, row in rows:
            count = min(int(generator.integers(2, 9)), tensor.layout.row_elements)
            columns = generator.choice(tensor.layout.row_elements, count, replace=False)
            for column in columns.tolist():
                mask = int(generator.integers(1, 1 << 16))
                flip(file.fileno(), tensor, row * tensor.layout.row_elements + column, mask)
            expected.setdefault(tensor.name, set()).add(row)
    try:
        observed = observe(model, manifest)
    finally:
        restore(model)
    found = {difference.tensor.name: set(difference.rows) for difference in observed.differences}
    confirmed = sum(element.confirmed for d in observed.differences for element in d.elements)
    claim(f"{sum(map(len, found.values()))} of {MULTI_ELEMENT} corrupted rows found")
    assert found == expected
    assert confirmed == 0, "no multi-element corruption may pass for a single one"


@pytest.mark.proof
@pytest.mark.real
def test_undamaged_weights_raise_no_alarm(model: Path, manifest: Manifest) -> None:
    assert verify(model, manifest).findings == ()
    assert audit(model).findings == ()


def flip(descriptor: int, tensor: TensorView, element: int, mask: int) -> None:
    assert tensor.offset is not None
    offset = tensor.offset + 2 * element
    old = int.from_bytes(os.pread(descriptor, 2, offset), "little")
    os.pwrite(descriptor, (old ^ mask).to_bytes(2, "little"), offset)


def restore(model: Path) -> None:
    model.write_bytes(smollm2_bf16().read_bytes())
