"""Three ways to sum up rows agree: NumPy on the host, plain torch, and Triton's kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from weightguard.guard.sums import block_sums, part_counts
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.tensor import DTYPES, row_layout
from weightguard_integrations.torch.row_sums import part_sums, words_of

SECRET = np.random.default_rng(1).integers(0, 1 << 64, BLOCK_BYTES, dtype=np.uint64)
CASES = [
    ("F32", (3, 100_003)),  # rows longer than a third of a block, that no block's end meets
    ("F64", (5, 70)),
    ("BF16", (65,)),
    ("F8_E4M3", (2, 7, 301)),
    ("F32", ()),
]
LARGE = [
    ("BF16", (5, 300_001)),
    ("U8", (BLOCK_BYTES + 70,)),  # one row, over two blocks
    ("BF16", (300, 4096)),
    ("F32", (700, 900)),
    ("F64", (131, 1031)),
    ("I8", (3000, 1024)),
]


def data_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
    nbytes = int(np.prod(shape, dtype=int)) * DTYPES[name].block_bytes
    return np.random.default_rng(len(shape)).integers(0, 256, nbytes, dtype=np.uint8)


def on_the_host(name: str, shape: tuple[int, ...], start: int) -> np.ndarray:
    dtype, data = DTYPES[name], data_of(name, shape)
    layout = row_layout(dtype, shape)
    blocks = range(start, len(data), BLOCK_BYTES)
    found = [block_sums(dtype, layout, data[at : at + BLOCK_BYTES], at, SECRET) for at in blocks]
    assert [len(sums) for sums in found] == part_counts(layout, start, len(data)).tolist()
    return np.concatenate(found)


def check(sum_up, name: str, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    dtype, data = DTYPES[name], data_of(name, shape)
    for start in range(0, len(data), BLOCK_BYTES):
        words = words_of(torch.from_numpy(data[start:].copy()), dtype.word_bytes)
        secret = torch.from_numpy(SECRET.view(np.int64))
        found = sum_up(words, dtype, row_layout(dtype, shape), start, secret)
        assert np.array_equal(found.numpy().view(np.uint64), on_the_host(name, shape, start))


def test_the_host_sums_are_those_of_the_definition() -> None:
    words = np.array([[3, 65535, 7] + 62 * [9]] * 2, np.uint16)
    dtype, data = DTYPES["BF16"], words.view(np.uint8).reshape(-1)
    sums = block_sums(dtype, row_layout(dtype, (2, 65)), data, 0, SECRET)
    row = [int(u) for u in words[0]]
    expected = [
        sum(row),
        sum(j * u for j, u in enumerate(row)),
        sum(int(s) * u for s, u in zip(SECRET, row, strict=False)) % (1 << 64),
    ]
    assert sums.tolist() == [expected, expected]


@pytest.mark.parametrize(("name", "shape"), CASES + LARGE)
def test_plain_torch(name: str, shape: tuple[int, ...]) -> None:
    check(part_sums, name, shape)


def test_triton_in_its_interpreter() -> None:
    """The kernel that a GPU compiles, run line by line on the CPU: in a process that starts so."""
    pytest.importorskip("triton", reason="Triton comes with torch for CUDA, or from PyPI on Linux")
    lines = [
        "from tests.integrations.torch.test_row_sums import CASES, check",
        "from weightguard_integrations.torch.row_sums_triton import part_sums",
        "for name, shape in CASES: check(part_sums, name, shape)",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, check=True)


def test_the_kernel_compiles_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to machine code of compute capability 9.0, which needs no GPU, with 16-byte loads."""
    triton = pytest.importorskip("triton", reason="as above")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from weightguard_integrations.torch import row_sums_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = row_sums_triton._sum_parts
    fixed = {
        "mask": 0xFFFF,
        "part_step": row_sums_triton.ROWS,
        "word_step": row_sums_triton.COLUMNS,
    }
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(fixed, "constexpr")
    types |= {"words": "*i16", "secret": "*i64", "sums": "*i64"}
    even = ("words", "secret", "sums", "words_here", "row_words", "block_words", "longest")
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in even}
    constants = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(kernel, types, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 0
    assert "ld.global.v4.b32" in compiled.asm["ptx"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is here")
@pytest.mark.parametrize(("name", "shape"), CASES + LARGE)
def test_triton_on_a_gpu(name: str, shape: tuple[int, ...]) -> None:
    from weightguard_integrations.torch import row_sums_triton

    def on_the_gpu(words, dtype, layout, start, secret):  # type: ignore[no-untyped-def]
        return row_sums_triton.part_sums(words.cuda(), dtype, layout, start, secret.cuda()).cpu()

    check(on_the_gpu, name, shape)
