"""Drift: how far each tensor of a checkpoint is from that of its base.

Thresholds, measured on SmolLM2-135M in bf16 (docs/gate.md has the table): fine-tuning, casts and
quantisation leave a tensor's direction as it was, another tensor has none of it.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from weightguard.errors import WeightguardError
from weightguard.scan.difference import ComparingSource, Difference, Extent, Odd, comparable
from weightguard.scan.fingerprint import TensorFingerprint, UIntArray
from weightguard.scan.values import element_index
from weightguard.tensor import DTYPES, TensorView

REPLACED_CHANGE = 0.5
"""Relative change at or above which a tensor is another one."""

REPLACED_COSINE = 0.8
"""Cosine between old and new below which a tensor is another one."""

QUANTISED_CHANGE = 0.25
"""Relative change up to which a tensor in another, block-quantised dtype counts as a cast."""

Status: TypeAlias = Literal[
    "unchanged",
    "cast",
    "fine-tuned",
    "broken",
    "replaced",
    "changed",
    "reshaped",
    "added",
    "removed",
]
"""``broken`` where NaN or infinities appeared in what is no other tensor; ``changed`` where nothing
is known but that the bytes differ: of manifests, of raw blocks."""


class Side(msgspec.Struct, frozen=True):
    """A tensor on one side: ``nbytes`` canonical bytes in ``file``, None where a manifest is read.

    Extrema and rms are over its finite values, None where not known; ``nan`` and ``inf`` count
    the others, where manifests tell.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str | None = None
    min: float | None = None
    max: float | None = None
    rms: float | None = None
    nan: int | None = None
    inf: int | None = None


class OddValues(msgspec.Struct, frozen=True):
    """Values that are NaN, or infinite, on one side only: how many, and the index of the first."""

    nan: int
    inf: int
    first: tuple[int, ...]


class TensorChange(msgspec.Struct, frozen=True):
    """One tensor beside its base.

    ``relative_change`` is ||new - base|| / ||base|| and ``cosine`` that of the angle between the
    two as vectors, over scalars finite in both; None where it is not known or not defined.
    ``changed`` of ``scalars`` have other bits (other values, where the dtypes differ).
    ``greatest_change`` is the greatest |new - base| of those, at ``greatest_at``; None where no
    finite value differs. ``appeared`` are NaN and infinities that the base does not have there,
    ``gone`` those that only the base has; None where there is none.
    """

    tensor: str
    status: Status
    base: Side | None
    new: Side | None
    relative_change: float | None = None
    cosine: float | None = None
    changed: int | None = None
    scalars: int | None = None
    greatest_change: float | None = None
    greatest_at: tuple[int, ...] | None = None
    appeared: OddValues | None = None
    gone: OddValues | None = None

    @property
    def first_place(self) -> tuple[int, ...] | None:
        """The index of what says most: the first NaN or infinity, else the greatest change."""
        odd = self.appeared or self.gone
        return self.greatest_at if odd is None else odd.first


class DriftLimits(msgspec.Struct, frozen=True):
    """How far a checkpoint may be from its base.

    ``max_change`` bounds the relative change of each tensor; the others are globs of the names
    of tensors that may change at all, be replaced, be added, be removed. Raises WeightguardError
    for a ``max_change`` that is no number from 0 up: nothing exceeds NaN.
    """

    max_change: float | None = None
    changed: tuple[str, ...] = ("*",)
    replaced: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_change is not None and not self.max_change >= 0:
            raise WeightguardError(f"the greatest change must be 0 or more, not {self.max_change}")


@dataclass(frozen=True, slots=True)
class Pairs:
    """How the names of two checkpoints match up, tied names counting on both sides."""

    matched: dict[str, TensorView]
    added: tuple[TensorView, ...]
    removed: tuple[TensorView, ...]


def match_tensors(base: Iterable[TensorView], new: Iterable[TensorView]) -> Pairs:
    """Return by the name of each new tensor the one of the base that bears one of its names."""
    base, new = list(base), list(new)
    known = {name: tensor for tensor in base for name in (tensor.name, *tensor.aliases)}
    present = {name for tensor in new for name in (tensor.name, *tensor.aliases)}
    matched, added = {}, []
    for tensor in new:
        names = (tensor.name, *tensor.aliases)
        found = next((known[name] for name in names if name in known), None)
        if found is None:
            added.append(tensor)
        else:
            matched[tensor.name] = found
    removed = [t for t in base if not present & {t.name, *t.aliases}]
    return Pairs(matched, tuple(added), tuple(removed))


class Drift:
    """Measures every tensor of a checkpoint against a base, in the pass that reads it anyway."""

    def __init__(self, base: Iterable[TensorView], new: Iterable[TensorView]):
        self.pairs = match_tensors(base, new)
        self._sources: dict[str, ComparingSource] = {}
        self._changes: dict[str, TensorChange] = {}
        for tensor in self.pairs.added:
            self._changes[tensor.name] = TensorChange(tensor.name, "added", None, _side(tensor))
        for tensor in self.pairs.removed:
            self._changes[tensor.name] = TensorChange(tensor.name, "removed", _side(tensor), None)

    def view(self, tensor: TensorView) -> TensorView:
        """Return ``tensor`` as it is to be scanned, so that it is compared while it is read."""
        base = self.pairs.matched.get(tensor.name)
        if base is None or not _measurable(base, tensor):
            return tensor
        source = self._sources[tensor.name] = _source(base, tensor)
        return replace(tensor, source=source)

    def observers(self, tensor: TensorView) -> Sequence[DriftObserver]:
        """Return who is to see ``tensor`` during the pass."""
        return [DriftObserver(self, tensor)] if tensor.name in self.pairs.matched else []

    def take(self, changes: Iterable[TensorChange]) -> None:
        """Take in changes that are known already."""
        self._changes |= {change.tensor: change for change in changes}

    def conclude(self, tensor: TensorView) -> None:
        """Judge a tensor whose every block was read."""
        base = self.pairs.matched[tensor.name]
        source = self._sources.pop(tensor.name, None)
        if base.shape != tensor.shape:
            change = TensorChange(tensor.name, "reshaped", _side(base), _side(tensor))
        elif source is None:
            change = TensorChange(tensor.name, "changed", _side(base), _side(tensor))
        else:
            change = _judge(base, tensor, source.result())
        self._changes[tensor.name] = change

    def change_of(self, tensor: TensorView) -> TensorChange | None:
        """Return the change of a tensor that was judged, or None."""
        return self._changes.get(tensor.name)

    @property
    def changes(self) -> tuple[TensorChange, ...]:
        """Every tensor's change by name; complete after the pass."""
        return tuple(self._changes[name] for name in sorted(self._changes))


class DriftObserver:
    """Tells a Drift when a tensor was read to its end."""

    def __init__(self, drift: Drift, tensor: TensorView):
        self._drift, self._tensor = drift, tensor

    def residues(self, first_row: int, residues: NDArray[np.uint64]) -> None:
        """See TensorObserver."""

    def magnitudes(self, first_row: int, magnitudes: UIntArray) -> None:
        """See TensorObserver."""

    def finished(self, fingerprint: TensorFingerprint) -> None:
        """See TensorObserver."""
        self._drift.conclude(self._tensor)


def matches(name: str, globs: Iterable[str]) -> bool:
    """Return whether a tensor's name matches one of the globs (``*``, ``?``, ``[...]``)."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _raw(tensor: TensorView) -> TensorView:
    """Return a tensor of raw blocks as the bytes it consists of."""
    return replace(tensor, dtype=DTYPES["U8"], shape=(tensor.nbytes,))


def _measurable(base: TensorView, tensor: TensorView) -> bool:
    return comparable(base, tensor) or (base.dtype, base.shape) == (tensor.dtype, tensor.shape)


def _source(base: TensorView, tensor: TensorView) -> ComparingSource:
    if tensor.dtype.is_opaque:
        return ComparingSource(_raw(base), _raw(tensor))
    return ComparingSource(base, tensor)


def _judge(base: TensorView, tensor: TensorView, found: Difference) -> TensorChange:
    if tensor.dtype.is_opaque:
        status: Status = "changed" if found.changed else "unchanged"
        return TensorChange(tensor.name, status, _side(base), _side(tensor))
    relative, cosine = _relative(found), _cosine(found)
    moved = found.greatest > 0
    return TensorChange(
        tensor.name,
        _status(base, tensor, found, relative, cosine),
        _side(base, found.base, found.scalars),
        _side(tensor, found.new, found.scalars),
        relative,
        cosine,
        found.changed,
        found.scalars,
        found.greatest if moved else None,
        element_index(tensor, found.place) if moved else None,
        _odd_values(tensor, found.appeared),
        _odd_values(tensor, found.gone),
    )


def _odd_values(tensor: TensorView, odd: Odd) -> OddValues | None:
    if odd.place is None:
        return None
    return OddValues(odd.nan, odd.inf, element_index(tensor, odd.place))


def _status(
    base: TensorView,
    tensor: TensorView,
    found: Difference,
    relative: float | None,
    cosine: float | None,
) -> Status:
    broken = found.appeared.place is not None
    if base.dtype == tensor.dtype:
        if not found.changed:
            return "unchanged"
    elif found.rounded or (_quantised(base, tensor, relative) and not broken):
        return "cast"
    if _is_other(relative, cosine, broken):
        return "replaced"
    return "broken" if broken else "fine-tuned"


def _is_other(relative: float | None, cosine: float | None, broken: bool) -> bool:
    if relative is None:
        return not broken
    return relative >= REPLACED_CHANGE or (cosine is not None and cosine < REPLACED_COSINE)


def _quantised(base: TensorView, tensor: TensorView, relative: float | None) -> bool:
    blocks = base.dtype.is_quantised or tensor.dtype.is_quantised
    return blocks and relative is not None and relative <= QUANTISED_CHANGE


def _relative(found: Difference) -> float | None:
    """Return ||new - base|| / ||base||; None where the base is zero and the new one is not.

    None also where either has no finite value that could have moved.
    """
    if not found.changed:
        return 0.0
    if math.isnan(found.base.least) or math.isnan(found.new.least):
        return None
    if not found.squares:
        return 0.0
    if not found.base_squares:
        return None
    ratio = found.squares / found.base_squares
    return math.inf if math.isnan(ratio) else math.sqrt(ratio)


def _cosine(found: Difference) -> float | None:
    norms = math.sqrt(found.base_squares) * math.sqrt(found.new_squares)
    if not norms or not math.isfinite(norms) or not math.isfinite(found.product):
        return None
    return max(-1.0, min(1.0, found.product / norms))


def _side(tensor: TensorView, extent: Extent | None = None, scalars: int = 0) -> Side:
    side = Side(tensor.dtype.name, tensor.shape, tensor.nbytes, tensor.shard)
    if extent is None or math.isnan(extent.least):
        return side
    rms = math.sqrt(extent.squares / scalars) if scalars else None
    return msgspec.structs.replace(side, min=extent.least, max=extent.greatest, rms=rms)


__all__ = [
    "Drift",
    "DriftLimits",
    "OddValues",
    "Side",
    "Status",
    "TensorChange",
    "match_tensors",
    "matches",
]
