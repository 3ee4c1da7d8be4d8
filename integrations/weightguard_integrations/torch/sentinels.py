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
    """A massive channel after one block, and the least and the greatest value it had."""

    channel: int
    position: int | None
    band: LayerBand
    least: torch.Tensor
    greatest: torch.Tensor


class Sentinels:
    """Looks at the blocks of one model on the CPU, until it is removed."""

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        massive_activations: Sequence[MassiveActivation],
        bounds: Sequence[float],
        channels: int,
    ):
        """``blocks`` are as many as there are bounds; both limits are those of a calibration.

        ``channels`` is the width of what the blocks put out.
        """
        import torch

        self._bounds = bounds
        bands = [(massive, band) for massive in massive_activations for band in massive.bands]
        with torch.inference_mode(mode=False):
            self._magnitudes = torch.zeros(len(bounds), channels)
            self._massive = torch.tensor(
                [band.layer * channels + massive.channel for massive, band in bands],
                dtype=torch.int64,
            )
            self._seen = torch.empty(len(bands), 2)
        self._watched = [
            _Watched(massive.channel, massive.position, band, *seen)
            for (massive, band), seen in zip(bands, self._seen, strict=True)
        ]
        self.reset()
        watched: dict[int, list[_Watched]] = defaultdict(list)
        for item in self._watched:
            watched[item.band.layer].append(item)
        opening = min(watched, default=None)
        beginnings = _Beginnings()
        self._handles = [
            block.register_forward_hook(
                _hook(magnitudes, watched[layer], beginnings, layer == opening),
                with_kwargs=True,
            )
            for layer, (block, magnitudes) in enumerate(zip(blocks, self._magnitudes, strict=True))
        ]

    def reset(self) -> None:
        """Forget what was seen."""
        self._magnitudes.zero_()
        self._seen[:, 0], self._seen[:, 1] = math.inf, -math.inf

    def read(self) -> list[Alarm]:
        """Return what left its limits since the last alarm, the first block first."""
        alarms = sorted(self._alarms(), key=lambda alarm: alarm.layer)
        if alarms:
            self.reset()
        return alarms

    def _alarms(self) -> Iterator[Alarm]:
        # a copy: passes go on meanwhile, and would write what was just left out
        others = self._magnitudes.clone()
        others.view(-1).index_fill_(0, self._massive, 0.0)
        peaks: list[float] = others.amax(1).tolist()
        for layer, (peak, bound) in enumerate(zip(peaks, self._bounds, strict=True)):
            if not peak <= bound:  # NaN is beyond every bound
                yield Alarm(layer, None, peak, 0.0, bound)
        for item, (least, greatest) in zip(self._watched, self._seen.tolist(), strict=True):
            band = item.band
            if not least >= band.low:
                yield Alarm(band.layer, item.channel, least, band.low, band.high)
            elif not greatest <= band.high:
                yield Alarm(band.layer, item.channel, greatest, band.low, band.high)

    def remove(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()


def find_block_list(root: nn.Module, count: int) -> nn.ModuleList | None:
    """Return the model's list of ``count`` blocks, None where it has none."""
    from torch import nn

    lists = (m for m in root.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return next(lists, None)


def find_width(root: nn.Module) -> int | None:
    """Return how many channels the model's blocks put out, None where its configuration is mute."""
    width = getattr(getattr(root, "config", None), "hidden_size", None)
    return width if isinstance(width, int) else None


def _hook(
    magnitudes: torch.Tensor, watched: Sequence[_Watched], beginnings: _Beginnings, opens: bool
) -> Any:
    """Return the forward hook of one block, whose output is [batch, length, channels].

    ``magnitudes`` holds the greatest of each channel; ``opens`` says that no block before this
    one asks for beginnings.
    """

    def look(
        _module: nn.Module, _inputs: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        state = (output[0] if isinstance(output, tuple) else output).detach()
        if state.dim() != 3 or state.shape[-1] != len(magnitudes) or not _readable(state):
            return
        magnitudes.clamp_(min=_magnitudes(state))
        # a single token is a step of decoding, where massive activations need not be
        if watched and state.shape[1] > 1:
            begun = beginnings.of(state, options, anew=opens)
            if begun is not None:
                for item in watched:
                    _watch(item, state[..., item.channel], *begun)

    return look


def _readable(state: torch.Tensor) -> bool:
    return state.device.type == "cpu" and state.is_floating_point() and state.numel() > 0


def _magnitudes(state: torch.Tensor) -> torch.Tensor:
    """Return the greatest magnitude of each channel of [batch, length, channels]."""
    import torch

    if state.shape[0] * state.shape[1] == 1:
        return state.abs()[0, 0]
    # floats without their sign bits have the order of integers, NaN last, which compare faster
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[state.element_size()]
    magnitudes = state.view(bits).bitwise_and(torch.iinfo(bits).max)
    return magnitudes.amax((0, 1)).view(state.dtype)


def _watch(item: _Watched, values: torch.Tensor, first: torch.Tensor, judged: torch.Tensor) -> None:
    """Take down the value that the band judges, of each prompt that begins in ``values``."""
    import torch

    if item.position is None:
        if values.shape[1] < MIN_TOKENS:
            return
    else:
        values = torch.where(first, values, 0.0)
    least, greatest = torch.aminmax(values, dim=1)
    found = torch.where(greatest >= -least, greatest, least).float()
    found = torch.where(judged, found, item.band.low)
    item.least.clamp_(max=found.amin())
    item.greatest.clamp_(min=found.amax())


class _Begun(NamedTuple):
    """Where prompts begin, bool [batch, length], and in which rows any does, bool [batch]."""

    first: torch.Tensor
    judged: torch.Tensor


class _Beginnings:
    """Where prompts begin, found once a forward pass: all blocks are given the same positions."""

    def __init__(self) -> None:
        self._last: tuple[object, _Begun | None] = (None, None)

    def of(self, state: torch.Tensor, options: dict[str, Any], *, anew: bool) -> _Begun | None:
        """Return the beginnings, None where they cannot be told; ``anew`` for the first block.

        Parts of a prompt that follow others through a cache begin at a later position.
        """
        import torch

        positions = options.get("position_ids")
        known, begun = self._last
        # a compiler sees the equal work of all blocks; it must not see memory between passes
        if torch.compiler.is_compiling():
            return _begun(state, positions, options)
        if anew or positions is None or positions is not known:
            begun = _begun(state, positions, options)
            self._last = (positions, begun)
        return begun


def _begun(state: torch.Tensor, positions: object, options: dict[str, Any]) -> _Begun | None:
    import torch

    if isinstance(positions, torch.Tensor) and positions.shape[-1] == state.shape[1]:
        first = (positions == 0).expand(state.shape[:2])
    elif options.get("past_key_values") is not None:
        return None
    else:
        first = (torch.arange(state.shape[1]) == 0).expand(state.shape[:2])
    return _Begun(first, first.any(1))
