"""Sealing: the live bytes are read once, compared with the manifest, and become the baseline.

One private copy of each block is hashed for the manifest and for the baseline, so nothing can
change between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightguard.errors import WeightguardError
from weightguard.finding import Finding
from weightguard.guard.adapter import Accounting, Adapter, AdapterError, Distant, LiveTensor
from weightguard.guard.agreement import Agreement
from weightguard.guard.baseline import Baseline, BaselineBuilder, Key, TensorBaseline
from weightguard.guard.casts import undone
from weightguard.guard.discrepancies import changes, missing, other_pieces, unattested, why_not
from weightguard.guard.live import live_blocks
from weightguard.guard.originals import Originals, cast_again, rounded
from weightguard.guard.pieces import PiecesReading, Taker
from weightguard.guard.shares import Declared
from weightguard.guard.vouchers import TensorType, Vouchers
from weightguard.manifest import Manifest, TensorRecord
from weightguard.scan.digest import Hasher, tensor_hasher


@dataclass(frozen=True, slots=True)
class Attempt:
    """What was found of a tensor before it was sealed, and what came of putting it right."""

    found: Finding
    outcomes: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A baseline, and what was found while it was made."""

    baseline: Baseline
    findings: tuple[Finding, ...]
    attempts: tuple[Attempt, ...] = ()


def seal(
    adapter: Adapter,
    key: Key,
    manifest: Manifest | None = None,
    names: Mapping[str, str] | None = None,
    threads: int = 1,
    originals: Originals | None = None,
    declared: Declared | None = None,
) -> Sealed:
    """Read every live tensor once and return its baseline and how it compares with the manifest.

    Findings: WG401 for a tensor whose bytes differ from its record, WG402 for records that no
    live tensor holds, WG910 for all that nobody vouches for. A cast that rounds is made again
    from ``originals``, which are verified along. Tensors with ``declared`` pieces are compared
    piece by piece, those of several processes by all of them together: it is a collective call
    then. Raises AdapterError, and WeightguardError for pieces that cannot make up a tensor.
    """
    declared = declared or Declared()
    settled = declared.settled
    vouchers = Vouchers(manifest, names or {}, originals, declared.pieces)
    with Agreement(declared, manifest) as agreement:

        def seal_one(tensor: LiveTensor) -> tuple[TensorBaseline, list[Finding]]:
            if tensor.name in settled:
                return settled[tensor.name]
            if tensor.name in agreement.names:
                return _seal_share(adapter, tensor, key, agreement), []
            return _seal_tensor(adapter, tensor, key, vouchers)

        with ThreadPoolExecutor(threads) as pool:
            sealed = list(pool.map(seal_one, adapter.tensors()))
        entries, findings = agreement.settle(entry for entry, _ in sealed)
    findings += [found for _, deviations in sealed for found in deviations]
    deviating = {found.location.tensor for found in findings}
    if not isinstance(adapter, Accounting):
        findings += missing(vouchers, entries)
    others = [entry for entry in entries if entry.tensor.name not in deviating]
    findings += unattested(others, manifest)
    return Sealed(Baseline.of(entries), tuple(findings))


def _seal_tensor(
    adapter: Adapter, tensor: LiveTensor, key: Key, vouchers: Vouchers
) -> tuple[TensorBaseline, list[Finding]]:
    if tensor.name in vouchers.pieces and vouchers.manifest is not None:
        return _seal_pieces(adapter, tensor, key, vouchers)
    readings = [_Reading(tensor, kind, vouchers) for kind in vouchers.readings(tensor)]
    builder = _taken_in(adapter, tensor, key, readings)
    digests = {r.kind: digest for r in readings if (digest := r.digest()) is not None}
    name = vouchers.named(tensor)
    record = None if name is None else vouchers.records[name]
    cast = None if name is None else _is_cast(adapter, tensor, name, vouchers)
    if cast and record is not None:
        how = f"cast from {record.dtype}; made again from the original"
        return builder.finish("transformed", how, name), []
    if record is None or digests.get((record.dtype, record.shape)) != record.digest:
        by_content = vouchers.with_content(digests.values())
        account = _account(adapter, tensor, vouchers)
        if by_content is None and account is not None:
            return builder.finish("transformed", account, name), []
        deviations = [] if name is None else list(changes(adapter, tensor, name, vouchers, cast))
        if by_content is None or deviations:
            how = "as it was found" if record is None else why_not(tensor, record, cast)
            return builder.finish("trusted-on-first-use", how, name), deviations
        name, record = by_content, vouchers.records[by_content]
    attested = (record.dtype, record.shape) == (tensor.dtype.name, tensor.shape)
    how = "equal bytes" if attested else _transformation(tensor, record)
    return builder.finish("attested" if attested else "transformed", how, name), []


def _is_cast(adapter: Adapter, tensor: LiveTensor, name: str, vouchers: Vouchers) -> bool | None:
    """Return whether a tensor is the cast of its original that rounds; None for no telling."""
    record = vouchers.records[name]
    if vouchers.originals is None or not rounded(tensor, record):
        return None
    original = vouchers.originals.origin(name)
    return None if original is None else cast_again(adapter, tensor, record, original)


def _taken_in(
    adapter: Adapter, tensor: LiveTensor, key: Key, takers: Sequence[Taker]
) -> BaselineBuilder:
    """Read a tensor once, for its baseline and for all who compare it.

    A device's memory is copied only for them, and the copy has to have the residues that the device
    found.
    """
    builder = BaselineBuilder(tensor, key)
    if tensor.distant and tensor.nbytes:
        assert isinstance(adapter, Distant)
        builder.add_sums(adapter.sums(tensor.name, 0, tensor.nbytes, key.secret).result())
        if not takers:
            return builder
    for block, data in enumerate(live_blocks(adapter, tensor)):
        if not tensor.distant:
            builder.add(block, data)
        elif not builder.agrees(block, data):
            raise AdapterError(f"{tensor.name[:200]!r} changed while it was sealed: try again")
        for taker in takers:
            taker.update(data)
    return builder


def _account(adapter: Adapter, tensor: LiveTensor, vouchers: Vouchers) -> str | None:
    if vouchers.manifest is None or not isinstance(adapter, Accounting):
        return None
    return adapter.account(tensor.name)


def _seal_pieces(
    adapter: Adapter, tensor: LiveTensor, key: Key, vouchers: Vouchers
) -> tuple[TensorBaseline, list[Finding]]:
    assert vouchers.manifest is not None
    pieces = vouchers.pieces[tensor.name]
    reading = PiecesReading(tensor, pieces, vouchers.manifest)
    builder = _taken_in(adapter, tensor, key, [reading])
    results = reading.results()
    damaged = [result for result in results if not result.sound]
    if damaged:
        how = "not its declared pieces"
        entry = builder.finish("trusted-on-first-use", how, None, pieces)
        return entry, [other_pieces(tensor, damaged)]
    whole = all(result.whole for result in results)
    proof = "digest of each" if whole else "residues of each row, digests of whole blocks"
    how = f"{len(results)} declared pieces of attested tensors; {proof}"
    return builder.finish("transformed", how, None, pieces), []


def _seal_share(
    adapter: Adapter, tensor: LiveTensor, key: Key, agreement: Agreement
) -> TensorBaseline:
    reading = agreement.reading(tensor)
    builder = _taken_in(adapter, tensor, key, [reading])
    how = "a slice that its ranks have yet to verify"
    return builder.finish("trusted-on-first-use", how, None, agreement.pieces[tensor.name])


def _transformation(tensor: LiveTensor, record: TensorRecord) -> str:
    cast = f"cast from {record.dtype}" if record.dtype != tensor.dtype.name else "reshaped"
    return f"{cast}; every byte recomputed"


class _Reading:
    """A live tensor's bytes, taken in as a manifest's record of another type would be."""

    def __init__(self, tensor: LiveTensor, kind: TensorType, vouchers: Vouchers):
        self.kind, self._live = kind, tensor.dtype.name
        self._algorithm = vouchers.algorithm
        self._hasher: Hasher | None = tensor_hasher(vouchers.algorithm, *kind)

    def update(self, data: NDArray[np.uint8]) -> None:
        if self._hasher is None:
            return
        attested = undone(data, self.kind[0], self._live)
        if attested is None:
            self._hasher = None  # no cast of such a record gives these bytes
        else:
            self._hasher.update(attested.data)

    def digest(self) -> str | None:
        return None if self._hasher is None else f"{self._algorithm}:{self._hasher.hexdigest()}"


def refuse_stranger(baseline: Baseline, manifest: Manifest | None) -> None:
    """Raise WeightguardError for a manifest that no live tensor is from."""
    entries = baseline.tensors.values()
    if manifest is None or not manifest.document.tensors:
        return
    if any(entry.attestation != "trusted-on-first-use" for entry in entries):
        return
    records = manifest.document.tensors
    named = [(entry.tensor, entry.record) for entry in entries if entry.record is not None]
    narrowed = sum(rounded(tensor, records[record]) for tensor, record in named)
    if 2 * narrowed < len(records):
        raise WeightguardError(
            "no live tensor is one of the manifest's: it is the manifest of another model, or the "
            "weights are not loaded. Name the manifest of the checkpoint that was loaded."
        )
