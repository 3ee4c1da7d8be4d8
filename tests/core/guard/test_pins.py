"""Super weights are pinned where they lie, also in tensors that are declared as pieces."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from tests.checkpoints import write_safetensors
from tests.conformance.arrays import ArrayAdapter, ArrayRuntime
from weightguard import Manifest, fingerprint
from weightguard.guard import Guard, Piece, Pinned, Settings, super_weight_pins
from weightguard.guard.shares import Declared, Together


class Alone:
    """A group of one process."""

    rank, count = 0, 1

    def add_up(self, array: np.ndarray) -> np.ndarray:
        return array


class Salient:
    """A manifest that names super weights, whatever made it."""

    class Weight:
        def __init__(self, index: tuple[int, int]):
            self.tensor, self.index = "w", index

    weights: ClassVar = [Weight((2, 70)), Weight((5, 99)), Weight((7, 3))]

    def __init__(self, manifest: Manifest):
        self.document = self
        self.tensors, self.salience = manifest.document.tensors, self
        self.super_weights = self.weights


def test_super_weights_in_pieces_are_pinned(tmp_path: Path) -> None:
    whole = np.random.default_rng(3).standard_normal((8, 200)).astype(np.float32)
    file = write_safetensors(tmp_path / "m.safetensors", {"w": ("F32", (8, 200), whole.tobytes())})
    columns, rows = whole[:, 60:180].copy(), whole[4:6].copy()
    adapter = ArrayAdapter(ArrayRuntime({"columns": columns, "rows": rows}))
    pieces = {
        "columns": [Piece("w", 240, 720, 800, 8)],
        "rows": [Piece("w", 3200, 4800)],
    }
    rest = {"left": whole[:, :60].copy(), "right": whole[:, 180:].copy()}
    adapter.runtime.arrays.update(rest)
    adapter.runtime.versions.update(dict.fromkeys(rest, 0))
    adapter.runtime.variants.update(dict.fromkeys(rest, ""))
    pieces["left"] = [Piece("w", 0, 240, 800, 8)]
    pieces["right"] = [Piece("w", 720, 800, 800, 8)]
    together = [Together(frozenset({"columns", "left", "right"}), Alone())]
    with fingerprint(file) as manifest:
        settings = Settings(on_incident=[], declared=Declared(pieces, together))
        guard = Guard(adapter, manifest, settings)
        assert guard.incidents == ()
        pins = list(super_weight_pins(guard.baseline, Salient(manifest)))  # type: ignore[arg-type]
    assert pins == [
        Pinned("columns", 4 * (2 * 120 + 10), 4 * (2 * 120 + 11)),
        Pinned("columns", 4 * (5 * 120 + 39), 4 * (5 * 120 + 40)),
        Pinned("rows", 4 * (200 + 99), 4 * (200 + 100)),
        Pinned("left", 4 * (7 * 60 + 3), 4 * (7 * 60 + 4)),
    ]
    for pin, (row, column) in zip(pins, [(2, 70), (5, 99), (5, 99), (7, 3)], strict=True):
        assert bytes(adapter.read(*pin)) == whole[row, column].tobytes()
