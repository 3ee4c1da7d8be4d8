"""Held-out prompts run in every way that a server runs them, and judged by the limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from weightguard_integrations.torch.activations import Limits, profile, profiles
from weightguard_integrations.torch.blocks import Tokens, hidden_states, run_blocks
from weightguard_integrations.torch.prompts import DECODE, PADDED, HeldOut
from weightguard_integrations.torch.steps import Steps

if TYPE_CHECKING:
    from torch import nn

DECODED_TOKENS = 12
"""Tokens at the end of a prompt that are decoded one by one through the KV cache."""
PADDED_BATCH = 4


def judge(
    model: nn.Module, blocks: nn.ModuleList, limits: Limits, prompts: HeldOut, steps: Steps
) -> Iterator[tuple[str, bool]]:
    """Yield (kind, left the limits) for each held-out prompt."""
    for kind, sequences in prompts.items():
        if kind == PADDED:
            judged = _padded(model, blocks, limits, sequences)
        elif kind == DECODE:
            judged = _decoded(model, blocks, limits, sequences)
        else:
            judged = (limits.exceeded(seen) for seen in profiles(model, blocks, sequences))
        for alarm in judged:
            yield kind, alarm
        steps.advance()


def _padded(
    model: nn.Module, blocks: nn.ModuleList, limits: Limits, sequences: Sequence[Tokens]
) -> Iterator[bool]:
    """Judge prompts of different lengths in one batch, padded on the left."""
    import torch

    with hidden_states(blocks) as states:
        for first in range(0, len(sequences), PADDED_BATCH):
            group = sequences[first : first + PADDED_BATCH]
            width = max(map(len, group))
            tokens = torch.tensor([[0] * (width - len(s)) + list(s) for s in group])
            mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in group])
            run_blocks(model, tokens, mask)
            for number, sequence in enumerate(group):
                real = [state[number, width - len(sequence) :] for state in states]
                yield limits.exceeded(profile(real))


def _decoded(
    model: nn.Module, blocks: nn.ModuleList, limits: Limits, sequences: Sequence[Tokens]
) -> Iterator[bool]:
    """Judge prompts whose last tokens are decoded one by one."""
    import torch

    for sequence in sequences:
        cut = max(1, len(sequence) - DECODED_TOKENS)
        parts = [list(sequence[:cut]), *([token] for token in sequence[cut:])]
        cache, alarms = None, []
        with hidden_states(blocks) as states:
            for number, part in enumerate(parts):
                output = run_blocks(
                    model, torch.tensor([part]), use_cache=True, past_key_values=cache
                )
                cache = output.past_key_values
                seen = profile([state[0] for state in states])
                alarms.append(limits.exceeded(seen, decoding=number > 0))
        yield any(alarms)
