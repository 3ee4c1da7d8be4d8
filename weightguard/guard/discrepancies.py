"""What sealing finds: tensors that differ from their records, and what nobody vouches for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weightguard.compare import Observed, TensorComparison
from weightguard.finding import Finding, finding
from weightguard.guard.adapter import Adapter, LiveTensor
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.casts import narrower
from weightguard.guard.incident import UNATTESTED
from weightguard.guard.live import live_view
from weightguard.guard.pieces import PieceResult
from weightguard.guard.vouchers import Vouchers
from weightguard.manifest import Manifest, TensorRecord
from weightguard.rules.equality import changed
from weightguard.scan.stream import scan_tensors
from weightguard.tensor import TensorView

MAX_LISTED = 16
"""Names that one finding lists."""


def changes(
    adapter: Adapter, tensor: LiveTensor, name: str, vouchers: Vouchers, cast: bool | None = None
) -> Iterable[Finding]:
    """Yield WG401 for a tensor that is not the record ``name``, to the element if types agree.

    ``cast`` is whether a cast of the record that rounds gives the tensor, None for no telling.
    """
    manifest = vouchers.manifest
    assert manifest is not None
    record = vouchers.records[name]
    if record.shape != tensor.shape:
        return
    if cast is False or record.dtype in narrower(tensor.dtype.name):
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


def other_pieces(tensor: LiveTensor, results: Sequence[PieceResult]) -> Finding:
    """Return WG401 for a tensor of which some declared pieces are not the attested ones."""
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


def why_not(tensor: LiveTensor, record: TensorRecord, cast: bool | None = None) -> str:
    """Return in words why the record does not vouch for the tensor. ``cast``: see ``changes``."""
    if cast is False or record.dtype in narrower(tensor.dtype.name):
        return f"no cast of the manifest's {record.dtype}"
    if record.dtype != tensor.dtype.name:
        return (
            f"{record.dtype} in the manifest; only a golden copy that is sound can make a rounding "
            "cast again"
        )
    if record.shape != tensor.shape:
        return f"shape {list(record.shape)} in the manifest"
    return "other bytes than the manifest's"


def missing(vouchers: Vouchers, entries: Sequence[TensorBaseline]) -> Iterable[Finding]:
    """Yield WG402 where there are records that no sealed tensor holds.

    By content: what one live tensor proves, it proves of every record that is equal to it.
    """
    held = {vouchers.records[entry.record].digest for entry in entries if entry.record is not None}
    held |= {
        vouchers.records[piece.record].digest
        for entry in entries
        for piece in vouchers.pieces.get(entry.tensor.name, ())
        if piece.record in vouchers.records
    }
    names = sorted(name for name, r in vouchers.records.items() if r.digest not in held)
    if names:
        yield finding(
            "WG402",
            f"{len(names)} of {len(vouchers.records)} attested tensors are not in the live "
            f"model, {names[0]!r:.200} among them",
            remedy="Load the whole checkpoint, and name the manifest of the model that runs.",
            evidence={"count": len(names), "names": names[:MAX_LISTED]},
        )


def unattested(entries: Sequence[TensorBaseline], manifest: Manifest | None) -> Iterable[Finding]:
    """Yield WG910 where any of the tensors is trusted as it was found."""
    trusted = [entry for entry in entries if entry.attestation == "trusted-on-first-use"]
    if not trusted:
        return
    nbytes = sum(entry.tensor.nbytes for entry in trusted)
    why = "no manifest was given" if manifest is None else "no record fits them"
    yield finding(
        UNATTESTED,
        f"{len(trusted)} of {len(entries)} live tensors, {nbytes} bytes, are trusted as they were "
        f"found: {why}",
        evidence={
            "count": len(trusted),
            "bytes": nbytes,
            "tensors": [
                {"name": entry.tensor.name, "why": entry.how} for entry in trusted[:MAX_LISTED]
            ],
        },
    )
