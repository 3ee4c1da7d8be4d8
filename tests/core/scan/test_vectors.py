"""The vectors of fingerprint-v1, run by the reference, NumPy and every instruction set."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.vectors import generate, inputs
from weightguard.scan import kernel
from weightguard.scan.formats import FORMATS
from weightguard.tensor import DTYPES, row_layout

VECTORS = json.loads(generate.TARGET.read_text())["vectors"]
MAX_COLUMNS = 1 << 20


@pytest.fixture(params=kernel.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernel.active_isa()
    kernel.select_isa(request.param)
    yield request.param
    kernel.select_isa(before)


def scan(vector: dict[str, Any]) -> dict[str, Any]:
    """Put a fingerprint together from the kernel's blocks, in the form of a vector."""
    dtype, shape = DTYPES[vector["dtype"]], tuple(vector["shape"])
    layout, form = row_layout(dtype, shape), FORMATS[dtype.scalar]
    nbytes = dtype.nbytes(inputs.elements(shape))
    data = np.frombuffer(inputs.make(vector["kind"], dtype.name, nbytes, vector["seed"]), np.uint8)
    columns = layout.rows >= 2 and layout.row_scalars <= MAX_COLUMNS
    engine = kernel.BlockKernel(dtype, layout, columns=columns)
    residues = np.zeros((layout.rows, 2), np.uint64)
    row_absmax = np.zeros(layout.rows, form.magnitude_dtype)
    column_absmax = np.zeros(layout.row_scalars, form.magnitude_dtype)
    counts, bits, total, squares = [0] * 5, [], 0.0, 0.0
    for start in range(0, nbytes, vector["block_bytes"]):
        size = min(vector["block_bytes"], nbytes - start)
        ahead = min(nbytes - start, size + dtype.block_bytes - 1)
        block = engine.scan(data[start : start + ahead], start, size)
        rows = slice(block.first_word_row, block.first_word_row + len(block.residues))
        residues[rows] += block.residues
        rows = slice(block.first_scalar_row, block.first_scalar_row + len(block.magnitudes))
        np.maximum(row_absmax[rows], block.magnitudes, out=row_absmax[rows])
        if block.columns is not None:
            np.maximum(column_absmax, block.columns, out=column_absmax)
        s = block.summary
        found = (s.finite, s.nan, s.inf, s.zero, s.subnormal)
        counts = [a + b for a, b in zip(counts, found, strict=True)]
        bits += [b for b in (s.min_bits, s.max_bits) if b is not None]
        total, squares = total + s.sum, squares + s.sumsq
    return {
        "rows": layout.rows,
        "residues": generate.pack(residues.ravel().tolist()),
        "counts": counts,
        "min": min(bits, key=form.order_key, default=None),
        "max": max(bits, key=form.order_key, default=None),
        "absmax": max(row_absmax.tolist()),
        "row_absmax": generate.pack(row_absmax.tolist()),
        "column_absmax": generate.pack(column_absmax.tolist()) if columns else None,
        "sum": reported(total).hex(),
        "sumsq": reported(squares).hex(),
    }


def reported(total: float) -> float:
    if math.isnan(total):
        return 0.0
    return math.copysign(min(abs(total), sys.float_info.max), total)


def test_the_reference_still_gives_the_vectors() -> None:
    assert generate.render() == generate.TARGET.read_text()


def test_every_dtype_has_vectors() -> None:
    plain = {d.name for d in DTYPES.values() if d.block_elements < 32}
    assert {v["dtype"] for v in VECTORS} == plain


def test_the_kernel_gives_the_vectors(isa: str) -> None:
    wrong = []
    for vector in VECTORS:
        result = scan(vector)
        different = [key for key, value in result.items() if value != vector[key]]
        if different:
            case = (vector["dtype"], vector["shape"], vector["kind"], vector["block_bytes"])
            wrong.append((*case, {k: (vector[k], result[k]) for k in different}))
    assert wrong[:3] == []
