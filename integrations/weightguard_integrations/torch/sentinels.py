"""Sentinels: what a sound model's activations keep to, looked at inside of every forward pass.

After a block the magnitude of the channels that are not massive has one bound; a massive channel
has a band where it lives, at the first position of a prompt, in prefill. Hooks write extremes into
cells, and the guard reads these before the next forward pass; of a GPU's it reads a copy that the
pass before asked for. An alarm is a suspicion: a prompt can be like none that was calibrated, so
whether weights are damaged is for their digests to say.

Only some blocks are looked at, as each look costs what a small kernel does. Blocks add to what
the ones before put out, so that what leaves the limits after one is there after the next, too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weightguard.calibration import Calibration, LayerBand, MassiveActivation
from weightguard_integrations.torch.distant import Answer, Devices
from weightguard_integrations.torch.extremes import BandCells, Beginnings, hook

if TYPE_CHECKING:
    import torch
    from torch import nn

EVENLY = 4
"""Blocks that are looked at, evenly spread with the last one among them."""


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
        layers: Sequence[int] | None = None,
        distant: bool = False,
    ):
        """``blocks`` are as many as there are bounds; both limits are those of a calibration.

        ``channels`` is the width of what the blocks put out. ``layers`` are looked at, where given.
        With ``distant`` CPU memory is read as a device's, too: for trials where there is none.
        """
        self.layers = watched_layers(massive_activations, len(bounds)) if layers is None else layers
        bands: dict[int, list[_Band]] = defaultdict(list)
        for massive in massive_activations:
            for band in massive.bands:
                bands[band.layer].append(_Band(massive, band))
        beginnings = Beginnings()
        opening = min((layer for layer in self.layers if bands[layer]), default=None)
        self._looks, self._handles = [], []
        for layer in self.layers:
            block = blocks[layer]
            look = _Look(layer, bounds[layer], bands[layer], channels, _device(block), distant)
            opens = layer == opening
            act = hook(look.magnitudes, look.band_cells, beginnings, opens=opens)
            self._handles.append(block.register_forward_hook(act, with_kwargs=True))
            self._looks.append(look)

    @property
    def seen(self) -> bool:
        """Whether any forward pass was looked at: a compiled one may go on without hooks."""
        return any(look.seen for look in self._looks)

    def reset(self) -> None:
        """Forget the values that were seen."""
        for look in self._looks:
            look.empty()

    def begin_again(self) -> None:
        """Forget the values that were seen, and that any were."""
        self.reset()
        for look in self._looks:
            look.seen = False

    def read(self, *, wait: bool = False) -> list[Alarm]:
        """Return what left its limits since the last alarm, the first block first.

        Of a device's memory, what had by the call before; unless one can ``wait`` for it.
        """
        alarms = [alarm for look in self._looks for alarm in look.read(wait=wait)]
        if alarms:
            self.reset()
        return alarms

    def remove(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()


class _Look:
    """The cells of one block on its device, and what each may reach at most."""

    def __init__(
        self,
        layer: int,
        bound: float,
        bands: Sequence[_Band],
        channels: int,
        device: torch.device,
        distant: bool,
    ):
        import torch

        self._layer, self._bound, self._bands, self._channels = layer, bound, bands, channels
        empty = np.zeros(channels + 2 * len(bands), np.float32)
        empty[channels:] = -math.inf
        self._limits = np.full(len(empty), bound)
        with torch.inference_mode(mode=False):
            self._cells = torch.from_numpy(empty.copy()).to(device)
            self._empty = torch.from_numpy(empty).to(device)
        self.magnitudes = self._cells[:channels]
        cells = self._cells[channels:].view(-1, 2)
        self.band_cells = [
            BandCells(of.massive.channel, of.massive.position, of.band.low, *pair)
            for of, pair in zip(bands, cells, strict=True)
        ]
        for of, pair in zip(bands, self._limits[channels:].reshape(-1, 2), strict=True):
            self._limits[of.massive.channel] = math.inf
            pair[:] = -of.band.low, of.band.high
        near = device.type == "cpu" and not distant
        self._host: NDArray[np.float32] | None = self._cells.numpy() if near else None
        self._devices = Devices()
        self._asked: Answer[bytes] | None = None
        self.seen = False

    def empty(self) -> None:
        self._cells.copy_(self._empty)
        self._asked = None

    def read(self, *, wait: bool) -> list[Alarm]:
        cells = self._fetched(wait=wait) if self._host is None else self._host
        if cells is None:
            return []
        if not self.seen:
            self.seen = bool(cells[: self._channels].any())
        # NaN is beyond every limit
        return [] if (cells <= self._limits).all() else list(self._alarms(cells.copy()))

    def _fetched(self, *, wait: bool) -> NDArray[np.float32] | None:
        """Return the cells as they were when they were asked for, and ask for them again."""
        asked = self._asked
        if wait or asked is None or asked.ready():
            self._asked = self._devices.fetch(self._bytes, self._cells)
            if wait:
                asked = self._asked
            return None if asked is None else np.frombuffer(asked.result(), np.float32)
        return None

    def _bytes(self) -> torch.Tensor:
        import torch

        return self._cells.view(torch.uint8)

    def _alarms(self, cells: NDArray[np.float32]) -> Iterator[Alarm]:
        magnitudes, limits = cells[: self._channels], self._limits[: self._channels]
        pairs = cells[self._channels :].reshape(-1, 2).tolist()
        judged = set()
        for of, (negated, greatest) in zip(self._bands, pairs, strict=True):
            band, channel = of.band, of.massive.channel
            if not -negated >= band.low:
                judged.add(channel)
                yield Alarm(self._layer, channel, -negated, band.low, band.high)
            elif not greatest <= band.high:
                judged.add(channel)
                yield Alarm(self._layer, channel, greatest, band.low, band.high)
        beyond = set(np.flatnonzero(~(magnitudes <= limits)).tolist()) - judged
        if beyond:
            peak = magnitudes[list(beyond)].max()
            yield Alarm(self._layer, None, float(peak), 0.0, self._bound)


def watched_layers(massive_activations: Iterable[MassiveActivation], count: int) -> list[int]:
    """Return which of ``count`` blocks are looked at: EVENLY spread ones, and all massive channels.

    A massive channel that none of them sees is looked for in the middle of where it lives.
    """
    chosen = {(n + 1) * count // EVENLY - 1 for n in range(EVENLY)} - {-1}
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
