"""What to look at before every forward pass: the super weights of a manifest, say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weightguard.guard.adapter import Adapter
from weightguard.guard.baseline import Baseline
from weightguard.guard.settings import Pinned
from weightguard.manifest import Manifest, recorded_view


class Pins:
    """Live bytes, and how they were when they were pinned."""

    def __init__(self, adapter: Adapter):
        self._adapter = adapter
        self._held: dict[Pinned, bytes] = {}

    def hold(self, pins: Iterable[Pinned]) -> None:
        """Hold these bytes, and no others, to what they are now. Raises AdapterError."""
        self._held = {pin: bytes(self._adapter.read(*pin)) for pin in pins}

    def hold_again(self, baseline: Baseline) -> None:
        """Hold those that ``baseline`` still has to what they are now. Raises AdapterError."""
        sizes = dict(baseline.sizes)
        self.hold(pin for pin in self._held if pin.stop <= sizes.get(pin.tensor, 0))

    @property
    def pinned(self) -> tuple[Pinned, ...]:
        """What is held."""
        return tuple(self._held)

    def moved(self) -> Iterator[Pinned]:
        """Yield those that differ now, or cannot be read."""
        for pin, expected in self._held.items():
            try:
                same = self._adapter.read(*pin) == expected
            except Exception:  # noqa: BLE001 - the check that follows says what is wrong
                same = False
            if not same:
                yield pin


def super_weight_pins(baseline: Baseline, manifest: Manifest) -> Iterator[Pinned]:
    """Yield where the manifest's super weights lie in live tensors that are proved to hold them."""
    records = manifest.document.tensors
    vouched = {
        entry.record: entry.tensor
        for entry in baseline.tensors.values()
        if entry.record is not None and entry.attestation != "trusted-on-first-use"
    }
    for weight in manifest.document.salience.super_weights:
        live = vouched.get(weight.tensor)
        if live is not None and live.dtype.block_elements == 1:
            view = recorded_view(weight.tensor, records[weight.tensor])
            start = view.element(weight.index) * live.dtype.block_bytes
            yield Pinned(live.name, start, start + live.dtype.block_bytes)
