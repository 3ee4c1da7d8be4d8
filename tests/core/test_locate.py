"""The residue theorem: one or two changed words never pass, one changed word is found."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from weightguard.locate import MODULUS, RowDelta, changed_word
from weightguard.tensor import DTYPES, TensorView


@dataclass(frozen=True)
class InMemory:
    """A byte source over bytes at hand."""

    data: bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]


def residues(words: list[int]) -> tuple[int, int]:
    return sum(words) % MODULUS, sum(j * u for j, u in enumerate(words)) % MODULUS


def test_exhaustively_no_change_of_one_or_two_words_of_a_small_row_passes() -> None:
    # linear in the differences: all pairs of columns and all pairs of 5-bit differences
    columns, differences = 9, range(-31, 32)
    checked = 0
    for a, b in itertools.combinations(range(columns), 2):
        for d1, d2 in itertools.product(differences, repeat=2):
            if d1 or d2:
                assert (d1 + d2, a * d1 + b * d2) != (0, 0)
                checked += 1
    assert checked == 36 * (63 * 63 - 1)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.data())
def test_extreme_double_changes_do_not_pass(width: int, data: st.DataObject) -> None:
    top = (1 << 8 * width) - 1
    word = st.sampled_from([0, 1, top // 2, top - 1, top]) | st.integers(0, top)
    column = st.sampled_from([0, 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
    a, b = data.draw(st.tuples(column, column).filter(lambda pair: pair[0] != pair[1]))
    old = data.draw(st.tuples(word, word))
    new = data.draw(st.tuples(word, word).filter(lambda pair: pair != old))
    d1, d2 = new[0] - old[0], new[1] - old[1]
    assert ((d1 + d2) % MODULUS, (a * d1 + b * d2) % MODULUS) != (0, 0)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["I8", "BF16", "F32", "Q4_0", "F4"]), st.data())
def test_one_changed_word_is_found_with_its_old_value(name: str, data: st.DataObject) -> None:
    dtype = DTYPES[name]
    columns = data.draw(st.integers(64, 200)) // dtype.block_elements * dtype.block_elements
    columns = max(columns, 2 * dtype.block_elements)
    shape = (3, max(columns, 64))
    seed = data.draw(st.integers(0, 2**32))
    nbytes = dtype.nbytes(shape[0] * shape[1])
    old = np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)
    view = TensorView("w", dtype, shape, "", 0, InMemory(b""))
    layout = view.layout
    row = data.draw(st.integers(0, layout.rows - 1))
    column = data.draw(st.integers(0, layout.row_words - 1))
    width = dtype.word_bytes
    at = row * layout.row_bytes + column * width
    new = old.copy()
    new[at : at + width] ^= np.frombuffer(
        data.draw(st.integers(1, (1 << 8 * width) - 1)).to_bytes(width, "little"), np.uint8
    )
    before, after = (words_of(v, layout.row_bytes, row, width) for v in (old, new))
    (r0, s0), (r1, s1) = residues(before), residues(after)
    delta = RowDelta(row, (r1 - r0) % MODULUS, (s1 - s0) % MODULUS)
    found = changed_word(TensorView("w", dtype, shape, "", 0, InMemory(new.tobytes())), delta)
    assert found is not None
    assert (found.offset, found.old, found.new) == (at, before[column], after[column])


def words_of(data: np.ndarray, row_bytes: int, row: int, width: int) -> list[int]:
    return data[row * row_bytes : (row + 1) * row_bytes].view(f"<u{width}").tolist()
