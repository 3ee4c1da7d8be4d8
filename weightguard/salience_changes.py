"""Recorded super weights and outlier channels beside those of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from weightguard.compare import Names
from weightguard.manifest import ManifestDocument
from weightguard.outliers import Extremes, ExtremesObserver, has_channels
from weightguard.salient import OutlierChannel, Salience, SuperWeight
from weightguard.scan.fingerprint import TensorObserver
from weightguard.scan.formats import FORMATS
from weightguard.scan.values import exact_bits
from weightguard.tensor import TensorView


@dataclass(frozen=True, slots=True)
class SuperWeightChange:
    """A recorded super weight whose bits differ in ``tensor``."""

    tensor: TensorView
    recorded: SuperWeight
    bits: int


@dataclass(frozen=True, slots=True)
class ChannelChange:
    """A recorded outlier channel whose greatest magnitude, as bits, differs in ``tensor``."""

    tensor: TensorView
    recorded: OutlierChannel
    bits: int


class SalienceComparison:
    """Compares what a manifest records as salient with the tensors of the same dtype and shape."""

    def __init__(self, tensors: Iterable[TensorView], names: Names, document: ManifestDocument):
        self._salience = document.salience
        self._tensors = _counterparts(tensors, names, document)
        self._channels = _by_tensor(self._salience.outlier_channels, self._tensors)
        self._changed: list[ChannelChange] = []

    def observers(self, tensor: TensorView) -> Sequence[TensorObserver]:
        """Return who is to see ``tensor`` during the pass."""
        wanted = tensor.name in self._channels and has_channels(tensor)
        return [ExtremesObserver(tensor, self._take)] if wanted else []

    def channels(self) -> list[ChannelChange]:
        """Return the outlier channels that changed; complete after the pass."""
        return sorted(
            self._changed, key=lambda c: (c.tensor.name, c.recorded.axis, c.recorded.index)
        )

    def super_weights(self) -> list[SuperWeightChange]:
        """Return the super weights that changed; reads each of them."""
        changes = []
        for weight in self._salience.super_weights:
            tensor = self._tensors.get(weight.tensor)
            if tensor is None:
                continue
            bits = _bits(tensor, weight.index)
            if bits is not None and bits != int(weight.bits, 16):
                changes.append(SuperWeightChange(tensor, weight, bits))
        return changes

    def with_confirmed(self, observed: Salience) -> Salience:
        """Return what was observed, with the super weights that the manifest says are confirmed.

        Those whose bits changed are left as they were observed.
        """
        confirmed: dict[tuple[str, tuple[int, ...]], SuperWeight] = {}
        for weight in self._salience.super_weights:
            tensor = self._tensors.get(weight.tensor)
            if weight.status != "confirmed" or tensor is None:
                continue
            if _bits(tensor, weight.index) == int(weight.bits, 16):
                here = msgspec.structs.replace(weight, tensor=tensor.name)
                confirmed[tensor.name, weight.index] = here
        others = (w for w in observed.super_weights if (w.tensor, w.index) not in confirmed)
        weights = (*confirmed.values(), *others)
        return msgspec.structs.replace(observed, super_weights=weights)

    def _take(self, tensor: TensorView, extremes: Extremes) -> None:
        for channel in self._channels[tensor.name]:
            bits = extremes.of(channel.axis)
            if bits is None or channel.index >= len(bits):
                continue
            observed = int(bits[channel.index])
            if observed != int(channel.bits, 16):
                self._changed.append(ChannelChange(tensor, channel, observed))


def _counterparts(
    tensors: Iterable[TensorView], names: Names, document: ManifestDocument
) -> dict[str, TensorView]:
    """Return by recorded name the tensor that bears it, with equal dtype and shape."""
    found: dict[str, TensorView] = {}
    for tensor in tensors:
        for name in names.matched.get(tensor.name, ()):
            record = document.tensors[name]
            if (record.dtype, record.shape) == (tensor.dtype.name, tensor.shape):
                found[name] = tensor
    return found


def _by_tensor(
    channels: Iterable[OutlierChannel], tensors: Mapping[str, TensorView]
) -> dict[str, list[OutlierChannel]]:
    by_tensor: dict[str, list[OutlierChannel]] = {}
    for channel in channels:
        if channel.tensor in tensors:
            by_tensor.setdefault(tensors[channel.tensor].name, []).append(channel)
    return by_tensor


def _bits(tensor: TensorView, index: tuple[int, ...]) -> int | None:
    """Return the scalar bits at an index of the manifest; None where it leads nowhere."""
    try:
        return exact_bits(tensor, tensor.element(index))
    except ValueError:
        return None


def decoded(tensor: TensorView, bits: int) -> float:
    """Return the number that scalar bits of a tensor mean."""
    return float(FORMATS[tensor.dtype.scalar].decode(bits))
