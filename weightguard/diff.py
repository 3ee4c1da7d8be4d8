"""What became of a model: two checkpoints, or their manifests, beside each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np

from weightguard.attest import fingerprint
from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.drift import Drift, DriftLimits, Side, Status, TensorChange, match_tensors
from weightguard.errors import WeightguardError
from weightguard.finding import Coverage, Finding, Report, ordered
from weightguard.manifest import Manifest, TensorRecord, is_manifest, recorded_view
from weightguard.progress import Meter, Progress
from weightguard.rules.drift import check_drift
from weightguard.salient import Salience
from weightguard.scan.fingerprint import TensorObserver
from weightguard.scan.formats import FORMATS
from weightguard.scan.stream import scan_tensors
from weightguard.scan.values import exact_bits
from weightguard.survey import Survey, own_names
from weightguard.tensor import TensorView

MoveKind: TypeAlias = Literal["super-weight", "row", "column"]
Measure: TypeAlias = Literal["values", "manifests"]


class Move(msgspec.Struct, frozen=True):
    """A super weight, or an outlier channel's greatest magnitude, that is not what it was.

    ``stands_out`` says on which sides it does; a value is None where it is not known.
    """

    kind: MoveKind
    tensor: str
    index: tuple[int, ...]
    base: float | None
    new: float | None
    stands_out: Literal["base", "new", "both"]


class Diff(msgspec.Struct, frozen=True):
    """How ``new`` differs from ``base``: every tensor by name, what moved, what limits forbid.

    ``measured`` is ``manifests`` where digests and statistics alone were compared.
    """

    base: str
    new: str
    measured: Measure
    tensors: tuple[TensorChange, ...]
    moved: tuple[Move, ...]
    findings: tuple[Finding, ...] = ()
    schema: str = "weightguard-diff-v1"

    def count(self, status: Status) -> int:
        """Return how many tensors have a status."""
        return sum(change.status == status for change in self.tensors)

    def report(self) -> Report:
        """Return the report of the new side: what limits forbid, and how much was compared."""
        sides = [change.new for change in self.tensors if change.new is not None]
        nbytes = sum(side.nbytes for side in sides)
        read = nbytes if self.measured == "values" else 0
        coverage = Coverage(len(sides), len(sides), read, nbytes)
        return Report(self.new, "unknown", True, self.findings, coverage)


def diff(
    base: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    limits: DriftLimits | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Diff:
    """Return how two checkpoints, manifests, or one of each, differ.

    Two checkpoints are read once, side by side, and the base once more for what stands out in it.
    Where either is a manifest, the other is fingerprinted and the two manifests are compared,
    without weights. ``limits`` make findings. Raises CheckpointError where a checkpoint cannot be
    read, ManifestError for an unusable manifest, and WeightguardError where ``limits`` bound
    changes that manifests do not tell.
    """
    base, new = Path(base), Path(new)
    with ExitStack() as stack:
        if is_manifest(base) or is_manifest(new):
            if limits is not None and limits.max_change is not None:
                raise WeightguardError(
                    "a manifest holds no weights, so the relative change cannot be measured: "
                    "give two checkpoints, or leave out the limit."
                )
            sides = [stack.enter_context(_attested(p, threads, progress)) for p in (base, new)]
            found = _compare_manifests(str(base), str(new), *sides)
        else:
            old, now = (stack.enter_context(open_checkpoint(p)) for p in (base, new))
            found = _compare_checkpoints(str(base), str(new), old, now, threads, progress)
    if limits is None:
        return found
    return msgspec.structs.replace(found, findings=ordered(check_drift(found.tensors, limits)))


def _attested(path: Path, threads: int | None, progress: Progress | None) -> Manifest:
    if is_manifest(path):
        return Manifest.read(path)
    return fingerprint(path, threads=threads, progress=progress)


def _compare_checkpoints(
    base_name: str,
    new_name: str,
    base: Checkpoint,
    new: Checkpoint,
    threads: int | None,
    progress: Progress | None,
) -> Diff:
    drift = Drift(base.tensors, new.tensors)
    before, after = Survey(base.tensors), Survey(new.tensors)
    own = {tensor.name: tensor for tensor in new.tensors}
    meter = Meter(base.nbytes + new.nbytes, progress)

    def observe(view: TensorView) -> Sequence[TensorObserver]:
        tensor = own[view.name]
        return [*drift.observers(tensor), *after.observers(tensor)]

    views = [drift.view(tensor) for tensor in new.tensors]
    scan_tensors(views, observe, digest=None, threads=threads, meter=meter)
    scan_tensors(base.tensors, before.observers, digest=None, threads=threads, meter=meter)
    old = before.conclude(base.config, own_names(base), threads).salience
    now = after.conclude(new.config, own_names(new), threads).salience
    moved = _moved(old, now, _reader(base.tensors), _reader(new.tensors))
    return Diff(base_name, new_name, "values", drift.changes, moved)


Read: TypeAlias = Callable[[str, tuple[int, ...]], float | None]


def _reader(tensors: Iterable[TensorView]) -> Read:
    """Return a function that reads one element; None where there is no such element."""
    known = {name: t for t in tensors for name in (t.name, *t.aliases)}

    def read(name: str, index: tuple[int, ...]) -> float | None:
        tensor = known.get(name)
        if tensor is None:
            return None
        try:
            bits = exact_bits(tensor, tensor.element(index))
        except ValueError:
            return None
        return float(FORMATS[tensor.dtype.scalar].decode(bits))

    return read


def _moved(old: Salience, new: Salience, before: Read, after: Read) -> tuple[Move, ...]:
    """Return what stands out on either side and is not what it was, super weights first."""
    moves = []
    weights = [{(w.tensor, w.index): w.value for w in s.super_weights} for s in (old, new)]
    for key in sorted(weights[0].keys() | weights[1].keys()):
        sides = _sides(key, *weights)
        was, now = weights[0].get(key), weights[1].get(key)
        was = before(*key) if was is None else was
        now = after(*key) if now is None else now
        if sides != "both" or was != now:
            moves.append(Move("super-weight", *key, was, now, sides))
    channels = [
        {(c.axis, c.tensor, c.index): c.value for c in s.outlier_channels} for s in (old, new)
    ]
    for channel in sorted(channels[0].keys() | channels[1].keys()):
        sides = _sides(channel, *channels)
        was, now = channels[0].get(channel), channels[1].get(channel)
        if sides != "both" or was != now:
            moves.append(Move(channel[0], channel[1], (channel[2],), was, now, sides))
    return tuple(moves)


def _sides(
    key: object, old: Mapping[Any, float], new: Mapping[Any, float]
) -> Literal["base", "new", "both"]:
    return "both" if key in old and key in new else "base" if key in old else "new"


def _compare_manifests(base_name: str, new_name: str, base: Manifest, new: Manifest) -> Diff:
    old, now = base.document.tensors, new.document.tensors
    before, after = (
        [_recorded(name, record) for name, record in sorted(records.items())]
        for records in (old, now)
    )
    pairs = match_tensors(before, after)
    changes = [TensorChange(t.name, "added", None, _side(t, now[t.name])) for t in pairs.added]
    changes += [TensorChange(t.name, "removed", _side(t, old[t.name]), None) for t in pairs.removed]
    for tensor in after:
        counterpart = pairs.matched.get(tensor.name)
        if counterpart is not None:
            records = old[counterpart.name], now[tensor.name]
            status = _status(*records, base, new, counterpart.name, tensor.name)
            sides = _side(counterpart, records[0]), _side(tensor, records[1])
            changes.append(TensorChange(tensor.name, status, *sides))
    moved = _moved(base.document.salience, new.document.salience, _unknown, _unknown)
    in_order = tuple(sorted(changes, key=lambda change: change.tensor))
    return Diff(base_name, new_name, "manifests", in_order, moved)


def _unknown(_name: str, _index: tuple[int, ...]) -> float | None:
    return None


def _recorded(name: str, record: TensorRecord) -> TensorView:
    return replace(recorded_view(name, record), aliases=record.aliases)


def _status(
    old: TensorRecord, now: TensorRecord, base: Manifest, new: Manifest, old_name: str, name: str
) -> Status:
    if old.shape != now.shape:
        return "reshaped"
    if old.digest == now.digest:
        return "unchanged"
    before, after = old.statistics, now.statistics
    if after.nan > before.nan or after.inf > before.inf:
        return "broken"
    if old.digest.partition(":")[0] == now.digest.partition(":")[0] or old.dtype != now.dtype:
        return "changed"
    # digests of two algorithms: block digests are of one
    blocks = base.sidecar.read(f"{base.numbers[old_name]}/blocks")
    same = np.array_equal(blocks, new.sidecar.read(f"{new.numbers[name]}/blocks"))
    return "unchanged" if same else "changed"


def _side(tensor: TensorView, record: TensorRecord) -> Side:
    statistics = record.statistics
    return Side(
        record.dtype,
        record.shape,
        tensor.nbytes,
        min=None if statistics.min is None else float(statistics.min.value),
        max=None if statistics.max is None else float(statistics.max.value),
        rms=statistics.rms,
        nan=statistics.nan,
        inf=statistics.inf,
    )
