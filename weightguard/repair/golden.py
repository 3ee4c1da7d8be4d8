"""A golden copy: the same tensors in another place, of any format and sharding."""

from __future__ import annotations

from weightguard.checkpoint import Checkpoint
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.manifest import Manifest
from weightguard.repair.target import Place
from weightguard.tensor import TensorView


class GoldenCopy:
    """Lends blocks by tensor name; counts what was read and what proved to be right.

    ``fetched`` are canonical bytes, ``right`` and ``wrong`` blocks.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, manifest: Manifest):
        self.name, self.checkpoint = name, checkpoint
        self.fetched = self.right = self.wrong = 0
        self.refused: dict[str, None] = {}
        named: dict[str, TensorView] = {
            alias: view for view in checkpoint.tensors for alias in (view.name, *view.aliases)
        }
        numbers = manifest.numbers
        self._tensors: dict[int, TensorView] = {}
        for primary, record in manifest.document.tensors.items():
            for alias in (primary, *record.aliases):
                view = named.get(alias)
                if view and (view.dtype.name, view.shape) == (record.dtype, record.shape):
                    self._tensors.setdefault(numbers[primary], view)
        if not self._tensors and manifest.document.tensors:
            raise WeightguardError(
                f"the golden copy {self.name!r} has no tensor of the manifest: it is another "
                "model. Nothing was changed; give a copy of the same model."
            )

    def read(self, place: Place, start: int, stop: int) -> bytearray | None:
        """See BlockSource; a block that cannot be read is none."""
        view = self._tensors.get(place.number)
        if view is None:
            return None
        try:
            data = view.read(start, stop)
        except CheckpointError:
            self.judged(place, right=False)
            return None
        self.fetched += len(data)
        return data

    def judged(self, place: Place, *, right: bool) -> None:
        """See BlockSource."""
        if right:
            self.right += 1
        else:
            self.wrong += 1
            self.refused[place.name] = None

    def require_some_right(self) -> None:
        """Raise WeightguardError where nothing that was read is what the manifest attests."""
        if self.wrong and not self.right:
            raise WeightguardError(
                f"the golden copy {self.name!r} is of another model, or damaged in the same "
                f"places: all {self.wrong} blocks that were read of it differ from the manifest. "
                "Nothing was changed; give a copy of the same model."
            )
