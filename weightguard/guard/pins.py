"""Which bytes to look at before every forward pass: the super weights of a manifest."""

from __future__ import annotations

from collections.abc import Iterator

from weightguard.guard.baseline import Baseline
from weightguard.guard.settings import Pinned
from weightguard.manifest import Manifest, recorded_view


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
