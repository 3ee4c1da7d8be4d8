"""Processes agree on what none of them can verify alone; here each is a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import write_safetensors
from tests.conformance.arrays import ArrayAdapter, ArrayRuntime
from weightguard import Manifest, WeightguardError, fingerprint
from weightguard.guard import GoldenCheckpoint, Guard, Piece, Settings, State
from weightguard.guard import shares as shares_module
from weightguard.guard.shares import Declared, Together

RANKS = 3
SHAPE = (40, 300)


class Board:
    """What threads add up on; one that waits alone fails."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(RANKS, timeout=20)
        self.arrays: dict[int, np.ndarray] = {}


class ThreadRanks:
    count = RANKS

    def __init__(self, board: Board, rank: int):
        self._board, self.rank, self.calls = board, rank, 0

    def add_up(self, array: np.ndarray) -> np.ndarray:
        self.calls += 1
        self._board.arrays[self.rank] = array
        self._board.barrier.wait()
        total = sum(self._board.arrays.values(), np.zeros_like(array))
        self._board.barrier.wait()
        return total


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(4)
    return {
        name: generator.standard_normal(SHAPE).astype(np.float32)
        for name in ("w", "whole", "sound")
    }


@pytest.fixture
def manifest(weights: dict[str, np.ndarray], tmp_path: Path) -> Iterator[Manifest]:
    tensors = {name: ("F32", SHAPE, array.tobytes()) for name, array in weights.items()}
    with fingerprint(write_safetensors(tmp_path / "m.safetensors", tensors)) as made:
        yield made


def together(act: Callable[[int, ThreadRanks], object]) -> list[object]:
    """Run one thread for each rank, and return what they return or raise."""

    def one(ranks: ThreadRanks) -> object:
        try:
            return act(ranks.rank, ranks)
        except WeightguardError as error:
            return error

    board = Board()
    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(one, [ThreadRanks(board, rank) for rank in range(RANKS)]))


def held(weights: dict[str, np.ndarray], rank: int) -> ArrayAdapter:
    """A third of the columns of one tensor, and the whole of others."""
    columns = weights["w"][:, 100 * rank : 100 * (rank + 1)].copy()
    others = {name: weights[name].copy() for name in ("whole", "sound")}
    return ArrayAdapter(ArrayRuntime({"w": columns, **others}))


def declared(ranks: ThreadRanks, piece: Piece | None = None) -> Declared:
    own = piece or Piece("w", 400 * ranks.rank, 400 * (ranks.rank + 1), 1200, 40)
    return Declared({"w": [own]}, [Together(frozenset({"w"}), ranks)])


def test_a_rank_that_heals_a_tensor_of_its_own_does_not_ask_the_others_again(
    weights: dict[str, np.ndarray], manifest: Manifest
) -> None:
    def act(rank: int, ranks: ThreadRanks) -> Guard:
        adapter = held(weights, rank)
        if rank == 1:
            adapter.runtime.arrays["whole"].view(np.uint32)[3, 5] ^= 64
            adapter.runtime.arrays["w"].view(np.uint32)[7, 11] ^= 64
        settings = Settings(on_incident=["repair"], declared=declared(ranks))
        guard = Guard(adapter, manifest, settings)
        assert ranks.calls == 2  # the sum, and who holds what differs
        return guard

    for rank, guard in enumerate(together(act)):
        assert isinstance(guard, Guard)
        codes = [i.code for i in guard.incidents]
        assert codes == (["WG401", "WG401", "WG907"] if rank == 1 else ["WG401"])
        found = next(i.finding for i in guard.incidents if i.tensor == "w")
        assert (found.location.row, found.location.element) == (7, (7, 111))
        assert found.evidence["rows"][0]["ranks"] == [1]
        entries = guard.baseline.tensors
        assert entries["w"].attestation == "trusted-on-first-use"
        assert entries["whole"].attestation == "attested"


def test_a_golden_copy_heals_slices_and_no_rank_is_asked_again(
    weights: dict[str, np.ndarray], manifest: Manifest, tmp_path: Path
) -> None:
    def act(rank: int, ranks: ThreadRanks) -> Guard:
        adapter, copy = held(weights, rank), GoldenCheckpoint(tmp_path / "m.safetensors")
        if rank == 1:
            adapter.runtime.arrays["w"].view(np.uint32)[7, 11:15] ^= 64
        settings = Settings(on_incident=["repair"], declared=declared(ranks))
        guard = Guard(adapter, manifest, settings, golden=copy)
        assert ranks.calls == 2
        assert np.array_equal(adapter.runtime.arrays["w"], held(weights, rank).runtime.arrays["w"])
        assert guard.check().findings == ()
        adapter.runtime.arrays["w"].view(np.uint32)[20, 3:5] ^= 1
        assert guard.check().findings == ()
        copy.close()
        return guard

    for rank, guard in enumerate(together(act)):
        assert isinstance(guard, Guard)
        healed = ["WG401", "WG907"] if rank == 1 else ["WG401"]
        assert [i.code for i in guard.incidents] == [*healed, "WG901", "WG907"]
        assert guard.baseline.tensors["w"].attestation == "transformed"
        assert guard.state is State.HEALTHY


def test_more_rows_than_are_followed_are_still_said(
    weights: dict[str, np.ndarray], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares_module, "MAX_LOCATED", 0)

    def act(rank: int, ranks: ThreadRanks) -> Guard:
        adapter = held(weights, rank)
        adapter.runtime.arrays["w"][rank] += 1
        return Guard(adapter, manifest, Settings(on_incident=[], declared=declared(ranks)))

    for guard in together(act):
        assert isinstance(guard, Guard)
        assert [(i.code, i.tensor) for i in guard.incidents] == [("WG401", "w")]


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece("w", 400, 800, 1200, 39), "declare every piece"),
        (Piece("w", 400, 800, 1200, 41), "cannot hold"),
        (Piece("w", 401, 801, 1200, 40), "cannot hold"),
        (Piece("w", 1000, 1400, 1200, 39), "cross from one row"),
        (Piece("other", 400, 800, 1200, 40), "no attested tensor"),
    ],
)
def test_a_rank_that_cannot_seal_tells_the_others(
    weights: dict[str, np.ndarray], manifest: Manifest, piece: Piece, message: str
) -> None:
    def act(rank: int, ranks: ThreadRanks) -> Guard:
        told = declared(ranks, piece if rank == 1 or piece.record == "other" else None)
        return Guard(held(weights, rank), manifest, Settings(declared=told))

    errors = together(act)
    assert all(isinstance(error, WeightguardError) for error in errors)
    assert message in str(errors[1])
    if piece.record == "w":
        assert "another rank" in str(errors[0])


def test_the_same_part_given_by_all_is_not_the_record(
    weights: dict[str, np.ndarray], manifest: Manifest
) -> None:
    def act(rank: int, ranks: ThreadRanks) -> Guard:
        told = declared(ranks, Piece("w", 0, 400, 1200, 40))
        return Guard(held(weights, 0), manifest, Settings(on_incident=[], declared=told))

    for guard in together(act):
        assert isinstance(guard, Guard)
        assert [(i.code, i.tensor) for i in guard.incidents] == [("WG401", "w")]


def test_parts_that_are_missing_are_refused_by_all(
    weights: dict[str, np.ndarray], manifest: Manifest
) -> None:
    def act(rank: int, ranks: ThreadRanks) -> Guard:
        adapter, told = held(weights, rank), declared(ranks)
        if rank == 2:
            adapter.runtime.arrays["w"] = weights["w"][:, 200:290].copy()
            told = declared(ranks, Piece("w", 800, 1160, 1200, 40))
        return Guard(adapter, manifest, Settings(declared=told))

    errors = together(act)
    assert all("290 words of row 0" in str(error) for error in errors)


def test_without_a_manifest_nobody_is_asked(weights: dict[str, np.ndarray]) -> None:
    ranks = ThreadRanks(Board(), 0)
    guard = Guard(held(weights, 0), None, Settings(on_incident=[], declared=declared(ranks)))
    assert ranks.calls == 0
    with guard.update():
        guard.adapter.runtime.arrays["w"][:] = 0  # type: ignore[attr-defined]
    assert ranks.calls == 0
