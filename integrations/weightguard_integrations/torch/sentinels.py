"""Sentinels: what a sound model's activations keep to, looked at inside of every forward pass.

After a block the magnitude of the channels that are not massive has one bound; a massive channel
has a band where it lives, at the first position of a prompt, in prefill. Hooks write extremes into
cells, and the guard reads these before the next forward pass; of a GPU's it reads a copy that the
pass before asked for. An alarm is a suspicion: a prompt can be like none that was calibrated, so
whether weights are damaged is for their digests to say.

Only the last block is looked at in every pass, and those where massive channels live in prefill, as
each look costs what a small kernel does. Blocks add to what the ones before put out, so that what
leaves the limits after one is there after the last, too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weightguard.calibration import Calibration, LayerBand, MassiveActivation
from weightguard_integrations.torch.distant import Answer, Devices
from weightguard_integrations.torch.extremes import BandCells, Beginnings, hook

if TYPE_CHECKING:
    import torch
    from torch import nn


class Alarm(NamedTuple):
    """A value that left its limits after block ``layer``; ``channel`` is None for a bound."""

    layer: int
    channel: int | None
    value: float
    low: float
    high: float


class _Band(NamedTuple):
    massive: MassiveActivation
    band: LayerBand


class Sentinels:
    """Looks at blocks of one model, until it is removed. ``layers`` says at which."""

    def __init__(
        self,
        blocks: Sequence[nn.Module] | nn.ModuleList,
        massive_activations: Sequence[MassiveActivation],
        bounds: Sequence[float],
        channels: int,
        *,
        distant: bool = False,
    ):
        """``blocks`` are as many as there are bounds; both limits are those of a calibration.

        ``channels`` is the width of what the blocks put out.
        With ``distant`` CPU memory is read as a device's, too: for trials where there is none.
        """
        self.layers = watched_layers(massive_activations, len(bounds))
        bands = [_Band(massive, band) for massive in massive_activations for band in massive.bands]
        by_device: dict[torch.device, list[_Limits]] = defaultdict(list)
        for layer in self.layers:
            here = [of for of in bands if of.band.layer == layer]
            by_device[_device(blocks[layer])].append(_Limits(layer, bounds[layer], here, channels))
        self._banks = [_Bank(limits, device, distant) for device, limits in by_device.items()]
        beginnings = Beginnings()
        opening = min((of.band.layer for of in bands if of.band.layer in self.layers), default=None)
        self._handles = [
            blocks[limits.layer].register_forward_hook(
                hook(
                    cells[: limits.channels],
                    limits.band_cells(cells),
                    beginnings,
                    opens=limits.layer == opening,
                    always=limits.layer == self.layers[-1],
                ),
                with_kwargs=True,
            )
            for bank in self._banks
            for limits, cells in bank
        ]

    @property
    def seen(self) -> bool:
        """Whether any forward pass was looked at: a compiled one may go on without hooks."""
        return any(bank.seen for bank in self._banks)

    def reset(self) -> None:
        """Forget the values that were seen."""
        for bank in self._banks:
            bank.empty()

    def begin_again(self) -> None:
        """Forget the values that were seen, and that any were."""
        self.reset()
        for bank in self._banks:
            bank.seen = False

    def read(self, *, wait: bool = False) -> list[Alarm]:
        """Return what left its limits since the last alarm, the first block first.

        Of a device's memory, what had by the call before; unless one can ``wait`` for it.
        """
        alarms = [alarm for bank in self._banks for alarm in bank.read(wait=wait)]
        if alarms:
            self.reset()
        return sorted(alarms, key=lambda alarm: alarm.layer)

    def remove(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class _Limits:
    """What one block's cells may reach at most: those of its channels, then two for each band."""

    layer: int
    bound: float
    bands: Sequence[_Band]
    channels: int

    def of_cells(self) -> NDArray[np.float64]:
        limits = np.full(self.channels, self.bound)
        limits[[of.massive.channel for of in self.bands]] = math.inf
        pairs = [limit for of in self.bands for limit in (-of.band.low, of.band.high)]
        return np.concatenate((limits, np.array(pairs)))

    def empty(self) -> NDArray[np.float32]:
        """Return cells that nothing was written to."""
        cells = np.zeros(self.channels + 2 * len(self.bands), np.float32)
        cells[self.channels :] = -math.inf
        return cells

    def band_cells(self, cells: torch.Tensor) -> list[BandCells]:
        pairs = cells[self.channels :].view(-1, 2)
        return [
            BandCells(of.massive.channel, of.massive.position, of.band.low, *pair)
            for of, pair in zip(self.bands, pairs, strict=True)
        ]

    def alarms(self, cells: NDArray[np.float32]) -> Iterator[Alarm]:
        pairs = cells[self.channels :].reshape(-1, 2).tolist()
        judged = set()
        for of, (negated, greatest) in zip(self.bands, pairs, strict=True):
            band, channel = of.band, of.massive.channel
            if not -negated >= band.low:
                judged.add(channel)
                yield Alarm(self.layer, channel, -negated, band.low, band.high)
            elif not greatest <= band.high:
                judged.add(channel)
                yield Alarm(self.layer, channel, greatest, band.low, band.high)
        limits = self.of_cells()[: self.channels]
        beyond = set(np.flatnonzero(~(cells[: self.channels] <= limits)).tolist()) - judged
        if beyond:
            yield Alarm(self.layer, None, float(cells[list(beyond)].max()), 0.0, self.bound)


class _Bank:
    """The cells of all blocks on one device; goes through them with their limits."""

    def __init__(self, limits: Sequence[_Limits], device: torch.device, distant: bool):
        import torch

        empty = [each.empty() for each in limits]
        self._parts = limits
        self._ends = np.cumsum([len(cells) for cells in empty]).tolist()
        # rounded down: what is above them has yet to be judged
        exact = np.concatenate([each.of_cells() for each in limits])
        rounded = exact.astype(np.float32)
        self._limits = np.where(
            rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded
        )
        with torch.inference_mode(mode=False):
            self._empty = torch.from_numpy(np.concatenate(empty)).to(device)
            self._cells = self._empty.clone()
        near = device.type == "cpu" and not distant
        self._host: NDArray[np.float32] | None = self._cells.numpy() if near else None
        self._devices = Devices()
        self._asked: Answer[bytes] | None = None
        self.seen = False

    def __iter__(self) -> Iterator[tuple[_Limits, torch.Tensor]]:
        return zip(self._parts, self._cells.tensor_split(self._ends[:-1]), strict=True)

    def empty(self) -> None:
        self._cells.copy_(self._empty)
        self._asked = None

    def read(self, *, wait: bool) -> list[Alarm]:
        cells = self._fetched(wait=wait) if self._host is None else self._host
        if cells is None:
            return []
        if not self.seen:
            self.seen = bool((cells > 0).any())
        # NaN is beyond every limit; counting is quicker than all(), which is Python
        if np.count_nonzero(cells <= self._limits) == len(cells):
            return []
        parts = np.split(cells.copy(), self._ends[:-1])
        pairs = zip(self._parts, parts, strict=True)
        return [alarm for limits, part in pairs for alarm in limits.alarms(part)]

    def _fetched(self, *, wait: bool) -> NDArray[np.float32] | None:
        """Return the cells as they were when they were asked for, and ask for them again."""
        asked = self._asked
        if not wait and asked is not None and not asked.ready():
            return None
        self._asked = self._devices.fetch(self._bytes, self._cells)
        if wait:
            asked = self._asked
        return None if asked is None else np.frombuffer(asked.result(), np.float32)

    def _bytes(self) -> torch.Tensor:
        import torch

        return self._cells.view(torch.uint8)


def watched_layers(massive_activations: Iterable[MassiveActivation], count: int) -> list[int]:
    """Return which of ``count`` blocks are looked at: the last one, and each massive channel.

    A massive channel that none of them sees is looked for in the middle of where it lives.
    """
    chosen = {count - 1}
    for massive in massive_activations:
        layers = [band.layer for band in massive.bands]
        if layers and not chosen.intersection(layers):
            chosen.add(layers[len(layers) // 2])
    return sorted(chosen)


def fits(calibration: Calibration, channels: int) -> bool:
    """Return whether all that a calibration speaks of is there, in blocks of so many channels."""
    count = len(calibration.activation_bounds)
    return all(
        massive.channel < channels and all(band.layer < count for band in massive.bands)
        for massive in calibration.massive_activations
    )


def find_block_list(root: nn.Module, count: int) -> nn.ModuleList | None:
    """Return the model's list of ``count`` blocks, None where it has none."""
    from torch import nn

    lists = (m for m in root.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return next(lists, None)


def find_width(root: nn.Module) -> int | None:
    """Return how many channels the model's blocks put out, None where its configuration is mute."""
    width = getattr(getattr(root, "config", None), "hidden_size", None)
    return width if isinstance(width, int) else None


def _device(block: nn.Module) -> torch.device:
    import torch

    parameter = next(block.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
