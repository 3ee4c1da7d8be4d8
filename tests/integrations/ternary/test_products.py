"""Products: equal to the reference in every bit, on every instruction set, for every shape."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import ternary as reference
from weightguard_integrations import ternary
from weightguard_integrations.ternary import PackedInt8, PackedTernary

SHAPES = ((1, 1), (5, 3), (16, 16), (17, 33), (33, 64), (64, 100), (100, 260), (250, 1000))
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17)
KINDS = {PackedTernary: (-1, 2), PackedInt8: (-128, 128)}


def weights(rng: np.random.Generator, kind: type, shape: tuple[int, int]) -> np.ndarray:
    return rng.integers(*KINDS[kind], shape, np.int8)


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verify", ["always", "off"])
def test_products_equal_the_reference(
    isa: str, kind: type, verify: str, rng: np.random.Generator
) -> None:
    for shape in SHAPES:
        weight = weights(rng, kind, shape)
        scales = rng.random(shape[0], np.float32)
        matrix = kind.from_int8(weight, scales)
        for tokens in TOKENS:
            x = rng.standard_normal((tokens, shape[1]), np.float32)
            assert equal(matrix.linear(x, verify=verify), reference.linear(weight, scales, x))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_nothing(threads: int, kind: type, rng: np.random.Generator) -> None:
    weight = weights(rng, kind, (1500, 700))
    matrix = kind.from_int8(weight, 0.5)
    scales = np.full(1500, 0.5, np.float32)
    for tokens in (1, 5, 70):
        x = rng.standard_normal((tokens, 700), np.float32)
        assert equal(matrix.linear(x), reference.linear(weight, scales, x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_are_exact(isa: str, kind: type, sign: int) -> None:
    """Constant activations, all weights alike: what overflows 16-bit accumulators elsewhere."""
    columns = {PackedTernary: 1 << 18, PackedInt8: 1 << 16}[kind]
    least = KINDS[kind][0]
    weight = np.full((17, columns), least, np.int8)
    matrix = kind.from_int8(weight, 1.0)
    for tokens in (1, 3):
        x = np.full((tokens, columns), sign, np.float32)
        expected = np.float32(least * sign * 127 * columns) * (np.float32(1) / np.float32(127))
        assert (matrix.linear(x) == expected).all()


@given(data=st.data())
@settings(max_examples=60)
def test_any_activations_of_any_number_format(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    seed = data.draw(st.integers(0, 2**32 - 1))
    ternary.select_isa(data.draw(st.sampled_from(ternary.available_isas())))
    rng = np.random.default_rng(seed)
    name = data.draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    width = np.uint32 if name == "float32" else np.uint16
    tokens = data.draw(st.integers(0, 9))
    bits = rng.integers(0, np.iinfo(width).max, (tokens, columns), width, endpoint=True)
    x = bits.view(dtype)  # any bits: subnormals, NaN and infinities among them
    if data.draw(st.booleans()):
        x = np.where(np.isfinite(x.astype(np.float32)), x, 0).astype(dtype)
    weight = rng.integers(-1, 2, (rows, columns), np.int8)
    scales = rng.random(rows, np.float32)
    y = PackedTernary.from_int8(weight, scales).linear(x)
    with np.errstate(over="ignore"):
        expected = reference.linear(weight, scales, x.astype(np.float32)).astype(dtype)
    assert y.dtype == dtype
    assert np.array_equal(y.astype(np.float32), expected.astype(np.float32), equal_nan=True)
    ternary.select_isa(ternary.available_isas()[-1])


def test_a_token_with_nan_or_infinity_gives_nan_and_others_do_not(
    isa: str, rng: np.random.Generator
) -> None:
    weight = weights(rng, PackedTernary, (20, 40))
    x = rng.standard_normal((4, 40), np.float32)
    x[1, 3], x[2, 39] = np.nan, -np.inf
    y = PackedTernary.from_int8(weight, 1.0).linear(x)
    assert np.isnan(y).all(axis=1).tolist() == [False, True, True, False]
    assert np.isfinite(y[[0, 3]]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors_in_and_out(dtype: torch.dtype, rng: np.random.Generator) -> None:
    weight = weights(rng, PackedTernary, (24, 50))
    matrix = PackedTernary.from_int8(weight, 0.25)
    x = torch.from_numpy(rng.standard_normal((2, 3, 50), np.float32)).to(dtype)
    y = matrix.linear(x)
    scales = np.full(24, 0.25, np.float32)
    exact = reference.linear(weight, scales, x.float().numpy().reshape(6, 50))
    assert y.dtype == dtype
    assert torch.equal(y, torch.from_numpy(exact).to(dtype).reshape(2, 3, 24))
    assert torch.equal(matrix.linear(x.transpose(0, 1)), y.transpose(0, 1))
    out = torch.empty(2, 3, 24, dtype=dtype)
    assert matrix.linear(x, out=out) is out
    assert torch.equal(out, y)


def test_half_outputs_round_to_nearest_even(isa: str) -> None:
    """Every scale from subnormal to overflow, one output each."""
    rng = np.random.default_rng(5)
    scales = np.exp2(rng.uniform(-40, 20, 4000)).astype(np.float32)
    weight = np.ones((4000, 1), np.int8)
    x = np.ones((1, 1), np.float32)
    matrix = PackedTernary.from_int8(weight, scales)
    exact = matrix.linear(x)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        out = np.empty((1, 4000), dtype)
        with np.errstate(over="ignore"):
            assert matrix.linear(x, out=out).tobytes() == exact.astype(dtype).tobytes()


class Other(torch.Tensor):
    """A subclass of tensors, as frameworks make them."""


BAD_X: list[tuple[Any, type[Exception], str]] = [
    (np.zeros((2, 41), np.float32), ValueError, "last dimension must be 40"),
    (np.float32(1), TypeError, "NumPy array"),
    (np.zeros((), np.float32), ValueError, "last dimension"),
    (np.zeros((2, 40), np.float64), TypeError, "float64"),
    (np.zeros((2, 40), np.int8), TypeError, "int8"),
    (np.zeros((2, 40), ">f4"), TypeError, "byte-swapped"),
    ([[0.0] * 40], TypeError, "list"),
    (torch.zeros(2, 40, device="meta"), TypeError, "meta"),
    (torch.zeros(2, 40).to_sparse(), TypeError, "dense"),
    (torch.zeros(2, 40).as_subclass(Other), TypeError, "Other, whose memory is not its own"),
    (torch.zeros(2, 40, dtype=torch.float64), TypeError, "float64"),
]


@pytest.mark.parametrize(("x", "error", "words"), BAD_X, ids=lambda v: str(v)[:20])
def test_wrong_activations_are_refused(x: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        PackedTernary.from_int8(np.zeros((3, 40), np.int8), 1.0).linear(x)


def read_only() -> np.ndarray:
    out = np.zeros((2, 3), np.float32)
    out.flags.writeable = False
    return out


BAD_OUT: list[tuple[Any, type[Exception], str]] = [
    (np.zeros((3, 2), np.float32), ValueError, "has shape"),
    (np.zeros((3, 2), np.float32).T, ValueError, "contiguous"),
    (np.zeros(25, np.uint8)[1:].view(np.float32).reshape(2, 3), ValueError, "aligned"),
    (read_only(), ValueError, "writable"),
    (np.zeros((2, 3), np.int32), TypeError, "int32"),
    (torch.zeros(3, 2).T, ValueError, "contiguous"),
    (torch.zeros(2, 3, requires_grad=True), ValueError, "gradient"),
]


@pytest.mark.parametrize(("out", "error", "words"), BAD_OUT, ids=lambda v: str(v)[:20])
def test_wrong_outputs_are_refused(out: Any, error: type[Exception], words: str) -> None:
    matrix = PackedTernary.from_int8(np.zeros((3, 40), np.int8), 1.0)
    with pytest.raises(error, match=words):
        matrix.linear(np.zeros((2, 40), np.float32), out=out)


@pytest.mark.parametrize(
    ("weight", "scale", "error", "words"),
    [
        (np.full((2, 3), 2, np.int8), 1.0, ValueError, r"\[0, 0\] is 2"),
        (np.zeros((0, 3), np.int8), 1.0, ValueError, "empty"),
        (np.zeros((2, 0), np.int8), 1.0, ValueError, "empty"),
        (np.zeros(3, np.int8), 1.0, ValueError, "matrix"),
        (np.zeros((2, 3), np.int16), 1.0, TypeError, "int16"),
        (np.zeros((2, 3), np.int8), [1.0, 2.0, 3.0], ValueError, "3 scales for 2 rows"),
        (np.zeros((2, 3), np.int8), np.nan, ValueError, "finite"),
        (np.zeros((1, (1 << 18) + 1), np.int8), 1.0, ValueError, "columns out of range"),
    ],
)
def test_wrong_weights_are_refused(
    weight: Any, scale: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        PackedTernary.from_int8(weight, scale)


def test_wrong_words_are_refused() -> None:
    matrix = PackedTernary.from_int8(np.zeros((3, 4), np.int8), 1.0)
    x = np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match="verify"):
        matrix.linear(x, verify="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_fault"):
        matrix.linear(x, on_fault="pray")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none of"):
        ternary.select_isa("mmx")
    for threads in (0, 257, -1):
        with pytest.raises(ValueError, match="1 to 256"):
            ternary.set_num_threads(threads)


def test_no_tokens_give_no_outputs() -> None:
    matrix = PackedTernary.from_int8(np.ones((3, 4), np.int8), 1.0)
    assert matrix.linear(np.zeros((0, 4), np.float32)).shape == (0, 3)
    assert matrix.linear(np.zeros((2, 0, 4), np.float32)).shape == (2, 0, 3)
    assert matrix.linear(np.zeros(4, np.float32)).shape == (3,)


def test_odd_strides_and_addresses_are_copied(rng: np.random.Generator) -> None:
    weight = weights(rng, PackedTernary, (9, 21))
    matrix = PackedTernary.from_int8(weight, 1.0)
    x = rng.standard_normal((6, 21), np.float32)
    room = np.zeros(x.nbytes + 1, np.uint8)
    shifted = room[1:].view(np.float32).reshape(x.shape)
    shifted[:] = x
    expected = matrix.linear(x)
    assert equal(matrix.linear(shifted), expected)
    assert equal(matrix.linear(np.asfortranarray(x)), expected)
    assert equal(matrix.linear(x[::-2]), expected[::-2])


def test_the_lock_is_released() -> None:
    """Another thread counts on while a long product runs."""
    matrix = PackedTernary.from_int8(np.ones((2048, 2048), np.int8), 1.0)
    x = np.ones((256, 2048), np.float32)
    before = ternary.isa()
    ternary.select_isa("scalar")
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(0.001)

    other = threading.Thread(target=count)
    other.start()
    try:
        started = counted[0]
        matrix.linear(x[:64])
        assert counted[0] - started >= 3
    finally:
        stop.set()
        other.join()
        ternary.select_isa(before)


def test_many_threads_at_once_agree(rng: np.random.Generator) -> None:
    weight = weights(rng, PackedTernary, (800, 600))
    matrix = PackedTernary.from_int8(weight, 1.0)
    x = rng.standard_normal((20, 600), np.float32)
    expected = matrix.linear(x)
    wrong = []

    def work() -> None:
        wrong.extend(1 for _ in range(50) if not equal(matrix.linear(x), expected))

    crowd = [threading.Thread(target=work) for _ in range(4)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert wrong == []


FORK = """
import os, sys
import numpy as np
from weightguard_integrations import ternary
ternary.set_num_threads(2)
matrix = ternary.PackedTernary.from_int8(np.ones((2000, 1000), np.int8), 1.0)
x = np.ones((16, 1000), np.float32)
expected = matrix.linear(x)
for _ in range(20):
    child = os.fork()
    right = all((matrix.linear(x) == expected).all() for _ in range(5))
    if child == 0:
        os._exit(0 if right else 1)
    assert right and os.waitpid(child, 0)[1] == 0
"""


def test_products_after_a_fork_are_right_in_parent_and_child() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60)


@pytest.mark.parametrize("name", ternary.available_isas())
def test_the_environment_chooses(name: str) -> None:
    code = "from weightguard_integrations import ternary as t; print(t.isa(), t.num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "WEIGHTGUARD_TERNARY_ISA": name, "WEIGHTGUARD_TERNARY_THREADS": "3"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [name, "3"]
