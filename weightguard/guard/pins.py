"""What to look at before every forward pass: the super weights of a manifest, say.

No pass waits for a device: what it asks for there, a later one compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weightguard.guard.adapter import Adapter, Distant, Glance, Promised, Token
from weightguard.guard.baseline import Baseline
from weightguard.guard.glances import Glances
from weightguard.guard.pieces import place_in
from weightguard.guard.settings import Pinned
from weightguard.manifest import Manifest, recorded_view


class Pins:
    """Live bytes, and how they were when they were pinned."""

    def __init__(self, adapter: Adapter):
        self._adapter = adapter
        self._glances = Glances(adapter)
        self._held: dict[Pinned, bytes] = {}
        self._tokens: dict[str, Token] = {}
        self._asked: dict[Pinned, Promised[bytes]] = {}

    def hold(self, pins: Iterable[Pinned]) -> None:
        """Hold these bytes, and no others, to what they are now. Raises AdapterError."""
        self._asked, self._tokens = {}, {}
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
        glances: dict[str, Glance | None] = {}
        for pin, expected in self._held.items():
            if pin.tensor not in glances:
                token = self._tokens.get(pin.tensor)
                glances[pin.tensor] = self._glances.at(pin.tensor, token)
            glance = glances[pin.tensor]
            if glance is not None and glance.data[pin.start : pin.stop] == expected:
                continue
            if self._differs(pin, expected):
                yield pin

    def _differs(self, pin: Pinned, expected: bytes) -> bool:
        try:
            seen = self._seen(pin)
        except Exception:  # noqa: BLE001 - the check that follows says what is wrong
            return True
        return seen is not None and seen != expected

    def _seen(self, pin: Pinned) -> memoryview | bytes | None:
        """Return the bytes as they are, or were at an earlier call; None while on their way."""
        live = self._adapter.describe(pin.tensor)
        if live is not None:
            self._tokens[pin.tensor] = live.token
        if live is None or not live.distant or not isinstance(self._adapter, Distant):
            return self._adapter.read(*pin)
        asked = self._asked.get(pin)
        if asked is not None and not asked.ready():
            return None
        self._asked[pin] = self._adapter.fetch(*pin)
        return None if asked is None else asked.result()


def super_weight_pins(baseline: Baseline, manifest: Manifest) -> Iterator[Pinned]:
    """Yield where the manifest's super weights lie in live tensors that are proved to hold them."""
    records = manifest.document.tensors
    entries = [
        entry
        for entry in baseline.tensors.values()
        if entry.attestation != "trusted-on-first-use" and entry.tensor.dtype.block_elements == 1
    ]
    for weight in manifest.document.salience.super_weights:
        element = recorded_view(weight.tensor, records[weight.tensor]).element(weight.index)
        for entry in entries:
            width = entry.tensor.dtype.block_bytes
            if entry.pieces:
                start = place_in(entry.pieces, weight.tensor, element * width)
            else:
                start = element * width if entry.record == weight.tensor else None
            if start is not None:
                yield Pinned(entry.tensor.name, start, start + width)
