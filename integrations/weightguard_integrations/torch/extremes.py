"""Extremes of what a block puts out, written by its forward hook into cells that exist beforehand.

So compiled graphs stay whole, and no forward pass waits for a number. For each channel a cell has
the greatest magnitude; for each band two have the greatest of a massive channel's values, which are
taken where a prompt begins, and of their negatives. Cells only ever grow, until they are emptied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from weightguard_integrations.torch.activations import MIN_TOKENS
from weightguard_integrations.torch.distant import tracing

if TYPE_CHECKING:
    import torch
    from torch import nn


class BandCells(NamedTuple):
    """Where a massive channel's values are taken: ``position`` None is that of the greatest.

    ``default`` is a value within the band. ``lowest`` has the greatest negative, ``highest`` the
    greatest; both of no dimension.
    """

    channel: int
    position: int | None
    default: float
    lowest: torch.Tensor
    highest: torch.Tensor


class Beginnings:
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


def hook(
    magnitudes: torch.Tensor,
    bands: Sequence[BandCells],
    beginnings: Beginnings,
    *,
    opens: bool,
    always: bool,
) -> Any:
    """Return the forward hook of one block, whose output is [batch, length, channels].

    ``magnitudes`` are the cells of its channels; outputs elsewhere than these are passed over.
    ``opens`` says that no block before this one asks for beginnings. Unless ``always`` is set,
    single tokens are passed over: those are steps of decoding.
    """
    channels, device, least = len(magnitudes), magnitudes.device, 1 if always else 2

    def look(
        _module: nn.Module, _inputs: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        state = output[0] if isinstance(output, tuple) else output
        shape = state.shape
        if len(shape) != 3 or shape[2] != channels or not shape[0] or shape[1] < least:
            return
        if state.device != device or not state.is_floating_point() or tracing():
            return
        if state.requires_grad:
            state = state.detach()
        magnitudes.clamp_(min=_magnitudes(state))
        # a single token is a step of decoding, where massive activations need not be
        if bands and shape[1] > 1:
            begun = beginnings.of(state, options, anew=opens)
            if begun is not None:
                for band in bands:
                    _look_at_band(band, state[..., band.channel], begun)

    return look


def _magnitudes(state: torch.Tensor) -> torch.Tensor:
    """Return the greatest magnitude of each channel of [batch, length, channels]."""
    import torch

    if state.shape[0] * state.shape[1] == 1:
        return state.abs().view(-1)
    # floats without their sign bits have the order of integers, NaN last, which compare faster
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[state.element_size()]
    magnitudes = state.view(bits).bitwise_and(torch.iinfo(bits).max)
    return magnitudes.amax((0, 1)).view(state.dtype)


def _look_at_band(band: BandCells, values: torch.Tensor, begun: _Begun) -> None:
    """Take down the value that the band judges, of each prompt that begins in ``values``."""
    import torch

    if band.position is None:
        if values.shape[1] < MIN_TOKENS:
            return
    else:
        values = torch.where(begun.first, values, 0.0)
    least, greatest = torch.aminmax(values, dim=1)
    found = torch.where(greatest >= -least, greatest, least).float()
    found = torch.where(begun.judged, found, band.default)
    band.lowest.clamp_(min=-found.amin())
    band.highest.clamp_(min=found.amax())


class _Begun(NamedTuple):
    """Where prompts begin, bool [batch, length], and in which rows any does, bool [batch]."""

    first: torch.Tensor
    judged: torch.Tensor


def _begun(state: torch.Tensor, positions: object, options: dict[str, Any]) -> _Begun | None:
    import torch

    if isinstance(positions, torch.Tensor) and positions.shape[-1] == state.shape[1]:
        first = (positions == 0).expand(state.shape[:2])
    elif options.get("past_key_values") is not None:
        return None
    else:
        first = (torch.arange(state.shape[1], device=state.device) == 0).expand(state.shape[:2])
    return _Begun(first, first.any(1))
