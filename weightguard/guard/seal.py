"""Sealing: the live bytes are read once, compared with the manifest, and become the baseline.

One private copy of each block is hashed for the manifest and for the baseline, so nothing can
change between the two. A tensor's digest does not depend on its name: a live tensor is found in
the manifest by name, and else by content.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from weightguard.compare import Observed, TensorComparison
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.finding import Finding, finding
from weightguard.guard.adapter import Accounting, Adapter, LiveTensor
from weightguard.guard.baseline import Baseline, BaselineBuilder, Key, TensorBaseline
from weightguard.guard.casts import CASTS, undone
from weightguard.guard.incident import UNATTESTED
from weightguard.guard.pieces import Piece, PieceResult, PiecesReading
from weightguard.manifest import Manifest, TensorRecord
from weightguard.rules.equality import changed
from weightguard.scan.digest import BLOCK_BYTES, DigestAlgorithm, Hasher, block_count, tensor_hasher
from weightguard.scan.stream import scan_tensors
from weightguard.tensor import DTYPES, TensorView

MAX_LISTED = 16
"""Names that one finding lists."""

_NARROW = {"F32": ("BF16", "F16")}
"""Dtypes that a live one may have been widened from."""

TensorType = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A baseline, and what was found while it was made."""

    baseline: Baseline
    findings: tuple[Finding, ...]


@runtime_checkable
class Originals(Protocol):
    """A golden copy that still has the tensors that a cast rounded."""

    def origin(self, record: str) -> TensorView | None:
        """Return the tensor that a record is of, None where the copy has it not."""
        ...


class Vouchers:
    """The manifest's records, by name and by content, and the originals of casts that round."""

    def __init__(
        self,
        manifest: Manifest | None,
        names: Mapping[str, str],
        originals: Originals | None,
        pieces: Mapping[str, Sequence[Piece]] | None = None,
    ):
        """``names`` maps live tensors to the manifest's where they are called differently.

        ``pieces`` declares, by live name, of which attested byte ranges a tensor is made up.
        """
        self.originals, self.pieces = originals, pieces or {}
        records = {} if manifest is None else manifest.document.tensors
        self.manifest, self.records, self._names = manifest, records, names
        self.algorithm: DigestAlgorithm = (
            "blake3" if manifest is None else manifest.document.digest_algorithm
        )
        self._primary = {n: name for name, r in records.items() for n in (name, *r.aliases)}
        self._by_content: defaultdict[str, list[str]] = defaultdict(list)
        for name, record in records.items():
            self._by_content[record.digest].append(name)
        self._types = {(record.dtype, record.shape) for record in records.values()}

    def named(self, tensor: LiveTensor) -> str | None:
        """Return the record that a live tensor's names point to, None without one."""
        names = (self._names.get(tensor.name), tensor.name, *tensor.aliases)
        return next((self._primary[n] for n in names if n in self._primary), None)

    def readings(self, tensor: LiveTensor) -> set[TensorType]:
        """Return the types under which the tensor's bytes may equal a record."""
        live = (tensor.dtype.name, tensor.shape)
        narrow = ((name, tensor.shape) for name in _NARROW.get(tensor.dtype.name, ()))
        readings = {kind for kind in (live, *narrow) if kind in self._types}
        name = self.named(tensor)
        if name is not None and _readable(tensor, self.records[name]):
            readings.add((self.records[name].dtype, self.records[name].shape))
        return readings

    def with_content(self, digests: Iterable[str]) -> str | None:
        """Return a record that one of the digests equals."""
        return next((self._by_content[d][0] for d in digests if d in self._by_content), None)


def _readable(tensor: LiveTensor, record: TensorRecord) -> bool:
    """Return whether the live bytes, perhaps widened, can be read as the record's type."""
    dtype = DTYPES[record.dtype]
    same = record.dtype == tensor.dtype.name or record.dtype in _NARROW.get(tensor.dtype.name, ())
    elements = tensor.nbytes // tensor.dtype.block_bytes * tensor.dtype.block_elements
    return same and elements == _elements(record.shape) and not elements % dtype.block_elements


def _elements(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=object))


def seal(
    adapter: Adapter,
    key: Key,
    manifest: Manifest | None = None,
    names: Mapping[str, str] | None = None,
    threads: int = 1,
    originals: Originals | None = None,
    pieces: Mapping[str, Sequence[Piece]] | None = None,
) -> Sealed:
    """Read every live tensor once and return its baseline and how it compares with the manifest.

    Findings: WG401 for a tensor whose bytes differ from its record, WG402 for records that no
    live tensor holds, WG910 for all that nobody vouches for. A cast that rounds is made again
    from ``originals``, which are verified along. Tensors that ``pieces`` names are compared piece
    by piece. Raises AdapterError, and WeightguardError for pieces that cannot make up a tensor.
    """
    vouchers = Vouchers(manifest, names or {}, originals, pieces)
    live = adapter.tensors()
    with ThreadPoolExecutor(threads) as pool:
        sealed = list(pool.map(lambda tensor: _seal_tensor(adapter, tensor, key, vouchers), live))
    entries = [entry for entry, _ in sealed]
    findings = [found for _, deviations in sealed for found in deviations]
    deviating = {found.location.tensor for found in findings}
    if not isinstance(adapter, Accounting):
        findings += _missing(vouchers, entries)
    findings += _unattested([e for e in entries if e.tensor.name not in deviating], vouchers)
    return Sealed(Baseline.of(entries), tuple(findings))


def _seal_tensor(
    adapter: Adapter, tensor: LiveTensor, key: Key, vouchers: Vouchers
) -> tuple[TensorBaseline, list[Finding]]:
    if tensor.name in vouchers.pieces and vouchers.manifest is not None:
        return _seal_pieces(adapter, tensor, key, vouchers)
    builder = BaselineBuilder(tensor, key)
    readings = [_Reading(tensor, kind, vouchers) for kind in vouchers.readings(tensor)]
    for block, data in enumerate(live_blocks(adapter, tensor)):
        builder.add(block, data)
        for reading in readings:
            reading.update(data)
    digests = {r.kind: digest for r in readings if (digest := r.digest()) is not None}
    name = vouchers.named(tensor)
    record = None if name is None else vouchers.records[name]
    if record is not None and name is not None and _rounded(tensor, record):
        original = None if vouchers.originals is None else vouchers.originals.origin(name)
        if original is not None and _cast_again(adapter, tensor, record, original):
            how = f"cast from {record.dtype}; made again from the original"
            return builder.finish("transformed", how, name), []
    if record is None or digests.get((record.dtype, record.shape)) != record.digest:
        by_content = vouchers.with_content(digests.values())
        account = _account(adapter, tensor, vouchers)
        if by_content is None and account is not None:
            return builder.finish("transformed", account, name), []
        deviations = [] if record is None else list(_deviation(adapter, tensor, name, vouchers))
        if by_content is None or deviations:
            how = "as it was found" if record is None else _why_not(tensor, record)
            return builder.finish("trusted-on-first-use", how, name), deviations
        name, record = by_content, vouchers.records[by_content]
    attested = (record.dtype, record.shape) == (tensor.dtype.name, tensor.shape)
    how = "equal bytes" if attested else _transformation(tensor, record)
    return builder.finish("attested" if attested else "transformed", how, name), []


def _account(adapter: Adapter, tensor: LiveTensor, vouchers: Vouchers) -> str | None:
    if vouchers.manifest is None or not isinstance(adapter, Accounting):
        return None
    return adapter.account(tensor.name)


def _seal_pieces(
    adapter: Adapter, tensor: LiveTensor, key: Key, vouchers: Vouchers
) -> tuple[TensorBaseline, list[Finding]]:
    assert vouchers.manifest is not None
    builder = BaselineBuilder(tensor, key)
    reading = PiecesReading(tensor, vouchers.pieces[tensor.name], vouchers.manifest)
    for block, data in enumerate(live_blocks(adapter, tensor)):
        builder.add(block, data)
        reading.update(data)
    results = reading.results()
    damaged = [result for result in results if not result.sound]
    if damaged:
        how = "not its declared pieces"
        return builder.finish("trusted-on-first-use", how, None), [_damaged(tensor, damaged)]
    whole = all(result.whole for result in results)
    proof = "digest of each" if whole else "residues of each row, digests of whole blocks"
    how = f"{len(results)} declared pieces of attested tensors; {proof}"
    return builder.finish("transformed", how, None), []


def _damaged(tensor: LiveTensor, results: Sequence[PieceResult]) -> Finding:
    first = results[0]
    where = f", rows {list(first.rows[:MAX_LISTED])} of it" if first.rows else ""
    more = f", and {len(results) - 1} more pieces differ" if len(results) > 1 else ""
    pieces = [
        {
            "record": result.piece.record,
            "rows": list(result.rows[:MAX_LISTED]),
            "row_count": len(result.rows),
            "blocks": list(result.blocks[:MAX_LISTED]),
        }
        for result in results[:MAX_LISTED]
    ]
    return finding(
        "WG401",
        f"holds other bytes than its declared piece of {first.piece.record!r:.200}{where}{more}",
        tensor=tensor.name,
        evidence={"pieces": pieces},
    )


def live_blocks(adapter: Adapter, tensor: LiveTensor) -> Iterable[NDArray[np.uint8]]:
    """Yield a private copy of each block of a live tensor, valid until the next one."""
    buffer = np.empty(min(BLOCK_BYTES, tensor.nbytes), np.uint8)
    for block in range(block_count(tensor.nbytes)):
        start = block * BLOCK_BYTES
        stop = min(start + BLOCK_BYTES, tensor.nbytes)
        piece = buffer[: stop - start]
        piece[:] = np.frombuffer(adapter.read(tensor.name, start, stop), np.uint8)
        yield piece


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


def _deviation(
    adapter: Adapter, tensor: LiveTensor, name: str | None, vouchers: Vouchers
) -> Iterable[Finding]:
    """Yield WG401 for a tensor that is not its record's, down to the element where types agree."""
    manifest = vouchers.manifest
    assert name is not None
    assert manifest is not None
    record = vouchers.records[name]
    if record.shape != tensor.shape:
        return
    if record.dtype in _NARROW.get(tensor.dtype.name, ()):
        message = f"live {tensor.dtype.name} that is no cast of the attested {record.dtype}"
        yield finding("WG401", message, tensor=tensor.name, evidence={"expected": record.digest})
    if record.dtype != tensor.dtype.name:
        return
    observed = Observed()
    number = manifest.numbers[name]

    def observe(seen: TensorView) -> Sequence[TensorComparison]:
        return [TensorComparison(seen, record, manifest, number, observed)]

    view = live_view(adapter, tensor)
    scan_tensors([view], observe, digest=vouchers.algorithm, threads=1)
    for difference in observed.differences:
        yield changed(difference)


def _rounded(tensor: LiveTensor, record: TensorRecord) -> bool:
    """Return whether the live tensor can only be a cast of its record that loses bits."""
    narrow = tensor.dtype.name in _NARROW.get(record.dtype, ())
    return narrow and tensor.shape == record.shape


def _cast_again(
    adapter: Adapter, tensor: LiveTensor, record: TensorRecord, original: TensorView
) -> bool:
    """Return whether the original is the attested one, and its cast the live tensor."""
    if (original.dtype.name, original.shape) != (record.dtype, record.shape):
        return False
    cast = CASTS[record.dtype, tensor.dtype.name]
    scale = original.dtype.block_bytes // tensor.dtype.block_bytes
    algorithm: DigestAlgorithm = "sha256" if record.digest.startswith("sha256") else "blake3"
    hasher = tensor_hasher(algorithm, record.dtype, record.shape)
    start = 0
    for live in live_blocks(adapter, tensor):
        stop = start + scale * len(live)
        try:
            data = np.frombuffer(original.read(start, stop), np.uint8)
        except CheckpointError:
            return False
        if not np.array_equal(cast(data), live):
            return False
        hasher.update(data.data)
        start = stop
    return f"{algorithm}:{hasher.hexdigest()}" == record.digest


def live_view(adapter: Adapter, tensor: LiveTensor) -> TensorView:
    """Return a live tensor as a view of canonical bytes."""
    source = _LiveSource(adapter.read, tensor.name)
    return TensorView(tensor.name, tensor.dtype, tensor.shape, "", None, source, tensor.aliases)


@dataclass(frozen=True, slots=True)
class _LiveSource:
    """Reads a live tensor as a ByteSource."""

    read: Callable[[str, int, int], memoryview]
    name: str

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        buffer[:] = self.read(self.name, offset, offset + len(buffer))


def _transformation(tensor: LiveTensor, record: TensorRecord) -> str:
    cast = f"cast from {record.dtype}" if record.dtype != tensor.dtype.name else "reshaped"
    return f"{cast}; every byte recomputed"


def _why_not(tensor: LiveTensor, record: TensorRecord) -> str:
    if record.dtype != tensor.dtype.name:
        return f"{record.dtype} in the manifest; only a golden copy can make a rounding cast again"
    if record.shape != tensor.shape:
        return f"shape {list(record.shape)} in the manifest"
    return "other bytes than the manifest's"


def _missing(vouchers: Vouchers, entries: Sequence[TensorBaseline]) -> Iterable[Finding]:
    # by content: what one live tensor proves, it proves of every record that is equal to it
    held = {vouchers.records[entry.record].digest for entry in entries if entry.record is not None}
    held |= {
        vouchers.records[piece.record].digest
        for entry in entries
        for piece in vouchers.pieces.get(entry.tensor.name, ())
        if piece.record in vouchers.records
    }
    missing = sorted(name for name, r in vouchers.records.items() if r.digest not in held)
    if missing:
        yield finding(
            "WG402",
            f"{len(missing)} of {len(vouchers.records)} attested tensors are not in the live "
            f"model, {missing[0]!r:.200} among them",
            remedy="Load the whole checkpoint, and name the manifest of the model that runs.",
            evidence={"count": len(missing), "names": missing[:MAX_LISTED]},
        )


def _unattested(entries: Sequence[TensorBaseline], vouchers: Vouchers) -> Iterable[Finding]:
    trusted = [entry for entry in entries if entry.attestation == "trusted-on-first-use"]
    if not trusted:
        return
    nbytes = sum(entry.tensor.nbytes for entry in trusted)
    missing = "no manifest was given" if vouchers.manifest is None else "no record fits them"
    yield finding(
        UNATTESTED,
        f"{len(trusted)} of {len(entries)} live tensors, {nbytes} bytes, are trusted as they were "
        f"found: {missing}",
        evidence={
            "count": len(trusted),
            "bytes": nbytes,
            "tensors": [
                {"name": entry.tensor.name, "why": entry.how} for entry in trusted[:MAX_LISTED]
            ],
        },
    )


def kept(former: Baseline, new: Baseline) -> tuple[Baseline, tuple[Finding, ...]]:
    """Return ``new``, in which tensors that did not change keep what vouched for them."""
    entries = []
    for name, entry in new.tensors.items():
        old = former.tensors.get(name)
        same = old is not None and entry.equals(old)
        entries.append(entry.vouched_like(old) if old is not None and same else entry)
    changed = [entry for entry in entries if entry.tensor.name in set(former.changed(new))]
    return Baseline.of(entries), tuple(_unattested(changed, Vouchers(None, {}, None)))


def refuse_stranger(baseline: Baseline, manifest: Manifest | None) -> None:
    """Raise WeightguardError for a manifest that no live tensor is from."""
    entries = baseline.tensors.values()
    if manifest is None or not manifest.document.tensors:
        return
    if any(entry.attestation != "trusted-on-first-use" for entry in entries):
        return
    records = manifest.document.tensors
    named = [(entry.tensor, entry.record) for entry in entries if entry.record is not None]
    rounded = sum(_rounded(tensor, records[record]) for tensor, record in named)
    if 2 * rounded < len(records):
        raise WeightguardError(
            "no live tensor is one of the manifest's: it is the manifest of another model, or the "
            "weights are not loaded. Name the manifest of the checkpoint that was loaded."
        )
