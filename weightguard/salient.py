"""Salient weights: super weights and outlier channels as manifests and reports record them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

Index: TypeAlias = Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)], ...],
                             msgspec.Meta(max_length=64)]  # fmt: skip
Bits: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{1,16}$")]

SuperWeightStatus: TypeAlias = Literal["nominated", "published", "confirmed"]
"""How much is known: by its numbers alone, by a publication, by ablation of this very model."""

ScoreName: TypeAlias = Literal["column_ratio", "path_gain"]

SIGNIFICANT_DIGITS = 4
"""Scores are rounded to these, so that they are the same whatever order a sum was taken in."""


class Score(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A score and its rank over the whole model, 1 the highest."""

    score: float
    rank: Annotated[int, msgspec.Meta(ge=1)]


class SuperWeight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One scalar weight that a model may hang on.

    ``index`` is its full index in ``tensor``, ``bits`` its exact scalar bits and ``value`` the
    number. ``row_heaviness`` is its output row's norm over the tensor's median row norm.
    ``source`` names the publication of a published one, ``loss_change`` in nats a token is what
    zeroing a confirmed one did, alone or with a partner of its row.
    """

    tensor: str
    index: Index
    bits: Bits
    value: float
    status: SuperWeightStatus
    scores: dict[ScoreName, Score]
    row_heaviness: float | None = None
    source: str | None = None
    loss_change: float | None = None


class OutlierChannel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row or column far heavier than its tensor's others.

    ``bits`` and ``value`` are its greatest magnitude; ``heaviness`` that over the median of
    the tensor's rows or columns. Row numbers are residue rows (fingerprint-v1, section 4).
    """

    tensor: str
    axis: Literal["row", "column"]
    index: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    bits: Bits
    value: float
    heaviness: float


class RecurringChannel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A channel of the residual stream that is an outlier in ``tensors`` of ``of`` tensors."""

    channel: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    tensors: Annotated[int, msgspec.Meta(ge=1)]
    of: Annotated[int, msgspec.Meta(ge=1)]
    layers: tuple[int, ...]


class Salience(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands out in a model's weights: most salient first, each list bounded."""

    super_weights: tuple[SuperWeight, ...] = ()
    outlier_channels: tuple[OutlierChannel, ...] = ()
    recurring_channels: tuple[RecurringChannel, ...] = ()


def significant(value: float) -> float:
    """Return ``value`` rounded to ``SIGNIFICANT_DIGITS``."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
