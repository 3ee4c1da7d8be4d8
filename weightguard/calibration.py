"""What a model does when it is sound: the records that a forward pass adds to a manifest.

Plain data, written by ``weightguard_integrations.torch`` and read by whoever compares a live
model with them; no part of the core computes them. Terms are those of docs/architecture.md.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Index: TypeAlias = Annotated[tuple[Count, ...], msgspec.Meta(max_length=64)]
TokenIds: TypeAlias = Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=4096)]


class Stack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the numbers were computed on; only an equal stack gives the same bits."""

    torch: str
    transformers: str
    device: str
    processor: str
    dtype: str
    threads: Count


class Ablation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One or two weights of a row zeroed together, and what that did to the loss.

    ``tensor`` is the name in the manifest, ``indices`` full element indices. ``loss_change`` is
    in nats a token over the calibration text; ``spike`` the greatest |W[row, j] * x[j]| of the
    weights. ``confirmed`` says that the change, and for two weights what it exceeds the greater
    change of either alone by, reaches the threshold of ``Calibration``.
    """

    tensor: str
    indices: Annotated[tuple[Index, ...], msgspec.Meta(min_length=1, max_length=2)]
    spike: float
    loss_change: float
    confirmed: bool


class LayerBand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signed range of a massive activation after one layer (0 is the first block)."""

    layer: Count
    low: float
    high: float


class MassiveActivation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A channel of the residual stream whose magnitude exceeds 100 and 1000 times the median.

    Definition: arXiv 2402.17762. ``position`` counts real tokens from 0: there it lives in the
    calibration prompts, during prefill only. It is None where the position moves from prompt
    to prompt; the bands are then of the value with the greatest magnitude in a prompt.
    """

    channel: Count
    position: Count | None
    bands: tuple[LayerBand, ...]


class PromptCount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Held-out prompts, and how many of them raised an alarm."""

    prompts: Count
    alarms: Count


class FalseAlarms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Held-out prompts that left the bands and bounds, of how many, by kind of prompt."""

    prompts: Count
    alarms: Count
    by_kind: dict[str, PromptCount]


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fixed tokens whose final logits are recorded; the logits are in the sidecar.

    ``entropy`` is that of the last position's distribution, in nats. On an equal stack logits
    are equal bit for bit. ``differences`` are the greatest |difference| of a logit that was
    measured when the same weights ran in another way; ``tolerances`` bound it elsewhere, by the
    dtype that the model runs in there. A dtype without an entry overflows with this model.
    """

    tokens: TokenIds
    entropy: float
    differences: dict[str, float]
    tolerances: dict[str, float]


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token sequence and the entropy of the next token at each position, in nats."""

    name: str
    tokens: TokenIds
    entropies: tuple[float, ...]


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that running the model taught.

    ``prompts`` identifies the calibration tokens. ``baseline_loss`` is in nats a token;
    ``confirmation_threshold`` the loss change from which an ablation counts.
    ``uncalibrated`` names output projections of the checkpoint whose weights were not zeroed,
    stacked experts among them. ``activation_bounds[l]`` bounds the magnitude of every channel
    after layer l that is no massive activation there.
    """

    stack: Stack
    prompts: str
    baseline_loss: float
    confirmation_threshold: float
    ablations: tuple[Ablation, ...]
    uncalibrated: tuple[str, ...]
    massive_activations: tuple[MassiveActivation, ...]
    activation_bounds: tuple[float, ...]
    false_alarms: FalseAlarms
    canary: Canary
    probes: tuple[Probe, ...]
