"""Records of fingerprints and sidecars, the digest over all, and views of recorded tensors."""

from __future__ import annotations

import hashlib
import json

from weightguard.errors import ManifestError
from weightguard.manifest.document import (
    ExactValue,
    SidecarRecord,
    StatisticsRecord,
    TensorRecord,
)
from weightguard.scan.fingerprint import Statistics, TensorFingerprint
from weightguard.scan.formats import FORMATS
from weightguard.sidecar import Sidecar
from weightguard.tensor import DTYPES, TensorView

UNWRITTEN = "unwritten.sidecar"
"""Names the sidecar of a manifest that was not written yet."""


def tensor_record(fingerprint: TensorFingerprint) -> TensorRecord:
    """Return the manifest's entry for a fingerprint."""
    tensor = fingerprint.tensor
    if fingerprint.digest is None:
        raise ValueError("a fingerprint without a digest attests nothing")
    return TensorRecord(
        tensor.dtype.name,
        tensor.shape,
        fingerprint.digest,
        tuple(sorted(tensor.aliases)),
        _statistics_record(fingerprint.statistics),
    )


def _statistics_record(statistics: Statistics) -> StatisticsRecord:
    def exact(bits: int | None) -> ExactValue | None:
        return None if bits is None else exact_value(statistics.scalar, bits)

    return StatisticsRecord(
        statistics.scalar,
        statistics.finite,
        statistics.nan,
        statistics.inf,
        statistics.zero,
        statistics.subnormal,
        exact(statistics.min_bits),
        exact(statistics.max_bits),
        exact_value(statistics.scalar, statistics.absmax_bits, magnitude=True),
        statistics.mean,
        statistics.rms,
    )


def exact_value(scalar: str, bits: int, *, magnitude: bool = False) -> ExactValue:
    """Return a finite scalar's bits and value; magnitude bits mean a number without sign."""
    form = FORMATS[scalar]
    value = form.decode(bits)
    return ExactValue(form.hexadecimal(bits), abs(value) if magnitude else value)


def weights_digest(tensors: dict[str, TensorRecord]) -> str:
    """Return the SHA-256 over every name, tied ones included, and its digest, in name order."""
    named = sorted(
        (name, record.digest)
        for primary, record in tensors.items()
        for name in (primary, *record.aliases)
    )
    hasher = hashlib.sha256(b"weightguard-weights-v1\0")
    for pair in named:
        hasher.update(json.dumps(pair).encode("ascii") + b"\n")
    return hasher.hexdigest()


def companion_record(sidecar: Sidecar) -> SidecarRecord:
    """Return what a manifest says of a sidecar that has no name yet."""
    return SidecarRecord(UNWRITTEN, sidecar.file.size, sidecar.digest())


def recorded_view(name: str, record: TensorRecord) -> TensorView:
    """Return a recorded tensor's dtype and shape as a view; it has no bytes to read.

    Raises ManifestError when they are no tensor's.
    """
    dtype = DTYPES.get(record.dtype)
    if dtype is None:
        raise ManifestError(f"the manifest names an unknown dtype {record.dtype[:100]!r}")
    view = TensorView(name, dtype, record.shape, "", None, _NoBytes())
    try:
        if view.nbytes >= 1 << 63:
            raise ValueError("more than 2^63 bytes")
        _ = view.layout
    except ValueError as error:
        raise ManifestError(
            f"the manifest gives tensor {name[:100]!r} an impossible shape: {error}"
        ) from error
    return view


class _NoBytes:
    def read_into(self, offset: int, buffer: memoryview) -> None:
        raise ManifestError("a manifest holds no weights")
