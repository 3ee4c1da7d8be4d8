"""Manifests: what they say, how they are written, replaced, read and checked."""

from weightguard.manifest.companions import is_manifest, refuse_replacing
from weightguard.manifest.document import (
    RESIDUES,
    SCHEMA,
    ExactValue,
    FileRecord,
    ManifestDocument,
    StatisticsRecord,
    TensorRecord,
)
from weightguard.manifest.encoding import encode
from weightguard.manifest.manifest import Manifest
from weightguard.manifest.records import (
    companion_record,
    exact_value,
    recorded_view,
    tensor_record,
    weights_digest,
)

__all__ = [
    "RESIDUES",
    "SCHEMA",
    "ExactValue",
    "FileRecord",
    "Manifest",
    "ManifestDocument",
    "StatisticsRecord",
    "TensorRecord",
    "companion_record",
    "encode",
    "exact_value",
    "is_manifest",
    "recorded_view",
    "refuse_replacing",
    "tensor_record",
    "weights_digest",
]
