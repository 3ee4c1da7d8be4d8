"""Reading a manifest with every check that one needs before anything is believed of it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from weightguard.checkpoint.files import CheckpointFile
from weightguard.errors import CheckpointError, ManifestError
from weightguard.manifest.document import (
    CANARY_LOGITS,
    SCHEMA,
    ExactValue,
    ManifestDocument,
    StatisticsRecord,
    TensorRecord,
)
from weightguard.manifest.records import exact_value, recorded_view, weights_digest
from weightguard.scan.formats import FORMATS
from weightguard.sidecar import Sidecar, array_specs
from weightguard.tensor import TensorView

MAX_JSON_BYTES = 1 << 30
_WHOLE = "Fetch it again from where it came."


def read_document(path: Path) -> ManifestDocument:
    """Return the document at ``path``, which does not contradict itself.

    Raises ManifestError where it is missing, damaged, altered or of a newer version.
    """
    name = path.name or str(path)
    document = _decode(_read_json(path, name), name)
    _check_document(document)
    return document


def open_sidecar(document: ManifestDocument, folder: Path) -> Sidecar:
    """Open the sidecar of a document that was read from ``folder``.

    Raises ManifestError where it is missing, or is not the one that the document names.
    """
    name = document.sidecar.name
    sidecar = Sidecar.open(folder / name, name)
    try:
        _check_sidecar(document, sidecar)
    except BaseException:
        sidecar.close()
        raise
    return sidecar


def _read_json(path: Path, name: str) -> bytes:
    try:
        file = CheckpointFile(path.resolve(), name)
    except CheckpointError as error:
        hint = "" if path.exists() else ". Name an existing one, or make it: `weightguard manifest`"
        raise ManifestError(f"cannot read the manifest: {error}{hint}") from error
    try:
        return file.read(0, file.size, limit=MAX_JSON_BYTES)
    except CheckpointError as error:
        raise ManifestError(f"cannot read the manifest: {error}") from error
    finally:
        file.close()


class _Version(msgspec.Struct):
    schema: str


def _decode(data: bytes, name: str) -> ManifestDocument:
    try:
        version = msgspec.json.decode(data, type=_Version).schema
        if version != SCHEMA:
            raise ManifestError(_version_message(name, version))
        return msgspec.json.decode(data, type=ManifestDocument)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as e:
        raise ManifestError(f"{name} is not a valid weightguard manifest: {e}. {_WHOLE}") from e


def _version_message(name: str, version: str) -> str:
    if re.fullmatch(r"weightguard-manifest-v\d{1,9}", version):
        return f"{name} has format {version}, which this weightguard is too old for: update it."
    return f"{name} is not a weightguard manifest: its schema is {version[:100]!r}."


def _check_document(document: ManifestDocument) -> None:
    """Raise ManifestError where the manifest contradicts itself: somebody changed a part of it."""
    tensors = document.tensors
    names = [name for primary, r in tensors.items() for name in (primary, *r.aliases)]
    if len(set(names)) != len(names):
        raise ManifestError(f"the manifest gives one name to several tensors. {_WHOLE}")
    for name, record in tensors.items():
        contradiction = _contradiction(record, recorded_view(name, record), document)
        if contradiction:
            raise ManifestError(
                f"the manifest contradicts itself: tensor {name[:100]!r} {contradiction}. {_WHOLE}"
            )
    weights = weights_digest(tensors)
    if weights != document.weights:
        raise ManifestError(
            f"the manifest contradicts itself: its tensors amount to weights {weights}, "
            f"it says {document.weights}. {_WHOLE}"
        )


def _contradiction(
    record: TensorRecord, view: TensorView, document: ManifestDocument
) -> str | None:
    """Return what in a tensor's record cannot be, or None."""
    statistics = record.statistics
    layout, scalar = view.layout, view.dtype.scalar
    if not record.digest.startswith(document.digest_algorithm + ":"):
        return f"has no {document.digest_algorithm} digest"
    if statistics.scalar != scalar:
        return f"has statistics of {statistics.scalar[:100]!r}, not of {scalar}"
    counted = statistics.finite + statistics.nan + statistics.inf
    if counted != layout.rows * layout.row_scalars:
        return f"has statistics of {counted} values, its shape has another number"
    if statistics.zero + statistics.subnormal > statistics.finite:
        return "has more zeros and subnormal values than finite ones"
    if (statistics.min is None, statistics.max is None) != (not statistics.finite,) * 2:
        return "has a least or greatest value that does not fit its counts"
    return _impossible_range(statistics)


def _impossible_range(statistics: StatisticsRecord) -> str | None:
    scalar, least, most, absmax = (
        statistics.scalar, statistics.min, statistics.max, statistics.absmax
    )  # fmt: skip
    signed = [_means(scalar, value, magnitude=False) for value in (least, most) if value]
    if not all([*signed, _means(scalar, absmax, magnitude=True)]):
        return "has bits and values that differ"
    if least is None or most is None:
        return None
    low, high = least.value, most.value
    if absmax.value != max(abs(low), abs(high)):
        return "has a greatest magnitude that is none of its extremes"
    # sums are rounded, and capped where they overflow
    slack = 1e-4 * absmax.value
    if not low - slack <= statistics.mean <= high + slack:
        return "has a mean outside its range"
    if not 0 <= statistics.rms <= absmax.value + slack:
        return "has a root mean square that its range rules out"
    return None


def _means(scalar: str, exact: ExactValue, *, magnitude: bool) -> bool:
    bits = int(exact.bits, 16)
    if bits > FORMATS[scalar].mask:
        return False
    return exact_value(scalar, bits, magnitude=magnitude) == exact


def _check_sidecar(document: ManifestDocument, sidecar: Sidecar) -> None:
    record = document.sidecar
    if sidecar.file.size != record.size or sidecar.digest() != record.digest:
        raise ManifestError(
            f"the sidecar {record.name} is not the one that the manifest was written with. "
            "Fetch both again from where the manifest came."
        )
    for number, name in enumerate(sorted(document.tensors)):
        for spec in array_specs(number, recorded_view(name, document.tensors[name])):
            if not sidecar.matches(spec):
                raise ManifestError(
                    f"the sidecar {record.name} lacks the arrays of tensor {name[:100]!r}"
                )
    logits = sidecar.arrays.get(CANARY_LOGITS)
    if document.calibration is not None and (
        logits is None or logits.dtype.name != "F32" or len(logits.shape) != 1
    ):
        raise ManifestError(f"the sidecar {record.name} lacks the logits of the canary")
