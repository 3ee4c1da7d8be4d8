"""Sentinels: what a sound model's activations keep to, looked at inside of every forward pass.

After each block the magnitude of the channels that are not massive has one bound; a massive
channel has a band where it lives, at the first position of a prompt, in prefill. The hooks write
extremes into buffers that exist beforehand, so compiled graphs stay whole, and nothing waits for
a number; the guard reads them before the next forward pass. An alarm is a suspicion: a prompt
can be like none that was calibrated, so whether weights are damaged is for their digests to say.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from weightguard.calibration import LayerBand, MassiveActivation
from weightguard_integrations.torch.activations import MIN_TOKENS

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


class _Watched(NamedTuple):
    """A massive channel after one block; ``seen`` holds its least and its greatest value."""

    channel: int
    position: int | None
    band: LayerBand
    seen: torch.Tensor


class Sentinels:
    """Looks at the blocks of one model on the CPU, until it is removed."""

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        massive_activations: Sequence[MassiveActivation],
        bounds: Sequence[float],
    ):
        """``blocks`` are as many as there are bounds; both limits are those of a calibration."""
        import torch

        self._bounds = bounds
        with torch.inference_mode(mode=False):
            self._peaks = torch.zeros(len(bounds))
            watched: dict[int, list[_Watched]] = defaultdict(list)
            for massive in massive_activations:
                for band in massive.bands:
                    seen = torch.empty(2)
                    watched[band.layer].append(
                        _Watched(massive.channel, massive.position, band, seen)
                    )
        self._watched = [item for items in watched.values() for item in items]
        self.reset()
        self._handles = [
            block.register_forward_hook(
                _hook(self._peaks[layer], watched.get(layer, [])), with_kwargs=True
            )
            for layer, block in enumerate(blocks)
        ]

    def reset(self) -> None:
        """Forget what was seen."""
        self._peaks.zero_()
        for item in self._watched:
            item.seen[0], item.seen[1] = math.inf, -math.inf

    def read(self) -> list[Alarm]:
        """Return what left its limits since the last alarm, the first block first."""
        alarms = sorted(self._alarms(), key=lambda alarm: alarm.layer)
        if alarms:
            self.reset()
        return alarms

    def _alarms(self) -> Iterator[Alarm]:
        peaks: list[float] = self._peaks.tolist()
        for layer, (peak, bound) in enumerate(zip(peaks, self._bounds, strict=True)):
            if not peak <= bound:  # NaN is beyond every bound
                yield Alarm(layer, None, peak, 0.0, bound)
        for channel, _, band, seen in self._watched:
            least, greatest = seen.tolist()
            if not least >= band.low:
                yield Alarm(band.layer, channel, least, band.low, band.high)
            elif not greatest <= band.high:
                yield Alarm(band.layer, channel, greatest, band.low, band.high)

    def remove(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()


def find_block_list(root: nn.Module, count: int) -> nn.ModuleList | None:
    """Return the model's list of ``count`` blocks, None where it has none."""
    from torch import nn

    lists = (m for m in root.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return next(lists, None)


def _hook(peak: torch.Tensor, watched: Sequence[_Watched]) -> Any:
    """Return the forward hook of one block, whose output is [batch, length, channels]."""

    channels = sorted({item.channel for item in watched})
    slices = [
        slice(first + 1, last)
        for first, last in zip([-1, *channels], [*channels, None], strict=True)
    ]

    def look(
        _module: nn.Module, _inputs: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        state = (output[0] if isinstance(output, tuple) else output).detach()
        if state.device != peak.device or state.dim() != 3 or not state.numel():
            return
        for part in slices:
            if state[..., part].shape[-1]:
                peak.clamp_(min=state[..., part].abs().amax())
        # a single token is a step of decoding, where massive activations need not be
        if watched and state.shape[1] > 1:
            first = _first_positions(state, options)
            if first is not None:
                for item in watched:
                    _watch(item, state[..., item.channel].float(), first)

    return look


def _watch(item: _Watched, values: torch.Tensor, first: torch.Tensor) -> None:
    """Take down the value that the band judges, of each prompt that begins in ``values``."""
    import torch

    judged = first.any(1)
    if item.position is None:
        if values.shape[1] < MIN_TOKENS:
            return
    else:
        values = torch.where(first, values, 0.0)
    places = values.abs().argmax(1, keepdim=True)
    found = values.gather(1, places)[:, 0]
    item.seen[0].clamp_(max=torch.where(judged, found, math.inf).amin())
    item.seen[1].clamp_(min=torch.where(judged, found, -math.inf).amax())


def _first_positions(state: torch.Tensor, options: dict[str, Any]) -> torch.Tensor | None:
    """Return where prompts begin, bool [batch, length]; None where that cannot be told.

    Parts of a prompt that follow others through a cache begin at a later position.
    """
    import torch

    positions = options.get("position_ids")
    if isinstance(positions, torch.Tensor) and positions.shape[-1] == state.shape[1]:
        first: torch.Tensor = (positions == 0).expand(state.shape[:2])
        return first
    if options.get("past_key_values") is not None:
        return None
    return (torch.arange(state.shape[1]) == 0).expand(state.shape[:2])
