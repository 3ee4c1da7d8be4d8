"""What a manifest says, as types: the document of docs/spec/manifest-v1.md and its parts."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weightguard.calibration import Calibration
from weightguard.salient import Salience
from weightguard.scan.digest import DigestAlgorithm
from weightguard.tensor import MAX_DIMENSIONS

SCHEMA: Literal["weightguard-manifest-v1"] = "weightguard-manifest-v1"
RESIDUES: Literal["sum-and-weighted-sum/u64"] = "sum-and-weighted-sum/u64"
CANARY_LOGITS = "canary/logits"
"""The sidecar's array of the canary's logits."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Hex256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
NamedDigest = Annotated[str, msgspec.Meta(pattern=r"^(blake3|sha256):[0-9a-f]{64}$")]


class ExactValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A scalar: its exact bits in hex, and the number they mean for people to read."""

    bits: Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{1,16}$")]
    value: float | int


class StatisticsRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Range statistics of one tensor; ``scalar`` is the format the values are of."""

    scalar: str
    finite: Count
    nan: Count
    inf: Count
    zero: Count
    subnormal: Count
    min: ExactValue | None
    max: ExactValue | None
    absmax: ExactValue
    mean: float
    rms: float


class TensorRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor's entry; its arrays are in the sidecar under its number in name order."""

    dtype: str
    shape: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    digest: NamedDigest
    aliases: tuple[str, ...]
    statistics: StatisticsRecord


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One whole file: size in bytes and SHA-256."""

    size: Count
    sha256: Hex256


class SidecarRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The sidecar that belongs to the manifest; ``name`` is relative to the manifest."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[^/\\\x00]{1,255}$")]
    size: Count
    digest: NamedDigest


class ManifestDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON document. ``weights`` identifies all tensors by name and content in one digest."""

    schema: Literal["weightguard-manifest-v1"]
    digest_algorithm: DigestAlgorithm
    block_digest: Literal["xxh3-128/1MiB"]
    residues: Literal["sum-and-weighted-sum/u64"]
    weights: Hex256
    tensors: dict[str, TensorRecord]
    files: dict[str, FileRecord]
    salience: Salience
    calibration: Calibration | None
    sidecar: SidecarRecord
    parity: SidecarRecord | msgspec.UnsetType = msgspec.UNSET
    """Left out of manifests that were made without parity."""
