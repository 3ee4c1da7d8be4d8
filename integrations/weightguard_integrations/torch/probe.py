"""The probe: how sure the model is of the next token, position by position, on unrelated text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightguard.calibration import Probe
from weightguard.salient import significant
from weightguard_integrations.torch.blocks import Tokens, batches, logits_of
from weightguard_integrations.torch.canary import entropies

if TYPE_CHECKING:
    from torch import nn


def record_probes(model: nn.Module, sequences: Mapping[str, Tokens]) -> tuple[Probe, ...]:
    """Return each named sequence with the entropy after each of its tokens, in nats."""
    return tuple(_probe(model, name, tokens) for name, tokens in sorted(sequences.items()))


def _probe(model: nn.Module, name: str, tokens: Tokens) -> Probe:
    (batch,) = batches([tokens])
    found = entropies(logits_of(model, batch)[0])
    return Probe(name, tuple(tokens), tuple(significant(value) for value in found))
