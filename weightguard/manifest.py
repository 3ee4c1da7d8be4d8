"""The manifest: all fingerprints of a checkpoint, as canonical JSON beside one sidecar file.

``NAME.weightguard.json`` is for people and signatures; it holds the digest of the sidecar, whose
name carries the first digits of that digest. So a new manifest never touches the old one's
sidecar, and renaming the JSON into place is the one moment at which the manifest changes.
Format: docs/spec/manifest-v1.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from weightguard.atomic import atomic_write, remove_abandoned
from weightguard.calibration import Calibration
from weightguard.checkpoint.files import CheckpointFile
from weightguard.errors import CheckpointError, ManifestError
from weightguard.parity import Parity
from weightguard.salient import Salience, SuperWeight
from weightguard.scan.digest import BLOCK_DIGEST, DigestAlgorithm
from weightguard.scan.fingerprint import Statistics, TensorFingerprint
from weightguard.scan.formats import FORMATS
from weightguard.sidecar import FETCH_AGAIN, ArraySpec, Sidecar, SidecarWriter, array_specs
from weightguard.tensor import DTYPES, MAX_DIMENSIONS, TensorView

SCHEMA: Literal["weightguard-manifest-v1"] = "weightguard-manifest-v1"
RESIDUES: Literal["sum-and-weighted-sum/u64"] = "sum-and-weighted-sum/u64"
MAX_JSON_BYTES = 1 << 30
SIDECAR_NAME_DIGITS = 16
SIDECAR_SUFFIX, PARITY_SUFFIX = ".sidecar", ".parity"
UNWRITTEN = "unwritten.sidecar"
"""Names the sidecar of a manifest that was not written yet."""
CANARY_LOGITS = "canary/logits"
_OR_WITHOUT_PARITY = FETCH_AGAIN.removesuffix(".") + ", or go without it (--no-parity)."
_WHOLE = "Fetch it again from where it came."

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


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest in memory: the document, and the open sidecar that its arrays are read from.

    ``parity`` is open where the manifest was just made; ``folder`` is where it was read from.
    """

    document: ManifestDocument
    sidecar: Sidecar
    parity: Sidecar | None = None
    folder: Path | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read and check ``NAME.weightguard.json`` and its sidecar.

        Raises ManifestError when either is missing, damaged, altered or of a newer version.
        """
        path = Path(path)
        name = path.name or str(path)
        document = _decode(_read_json(path, name), name)
        _check_document(document)
        sidecar = Sidecar.open(path.parent / document.sidecar.name, document.sidecar.name)
        try:
            _check_sidecar(document, sidecar)
        except BaseException:
            sidecar.close()
            raise
        return cls(document, sidecar, folder=path.parent)

    def open_parity(self) -> Parity | None:
        """Open the parity sidecar and check all of it; None for a manifest without parity.

        Raises ManifestError where it is missing, altered or damaged; it says how a repair goes
        without.
        """
        record = self.document.parity
        if record is msgspec.UNSET:
            return None
        sidecar = self.parity or self._parity_file(record, _OR_WITHOUT_PARITY)
        try:
            if sidecar.file.size != record.size or sidecar.digest() != record.digest:
                raise ManifestError(
                    f"the parity sidecar {record.name} is not the one that the manifest was "
                    f"written with. {_OR_WITHOUT_PARITY}"
                )
            return Parity.of(sidecar, self.views())
        except BaseException:
            sidecar.close()
            raise

    def _parity_file(self, record: SidecarRecord, remedy: str = FETCH_AGAIN) -> Sidecar:
        folder = self.folder or Path()
        return Sidecar.open(folder / record.name, record.name, "parity sidecar", remedy)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the manifest to ``path`` and its sidecar beside it; return the sidecar's path.

        Either the old manifest or the new one is whole at any moment. Raises ManifestError,
        also where ``path`` is a file that is no manifest: it might be the weights.
        """
        path = Path(path)
        refuse_replacing(path)
        record = self.document.sidecar
        name = sidecar_name(path, record.digest)
        previous = _previous_companions(path)
        try:
            parity = self._write_parity(path)
            with atomic_write(path.parent / name) as file:
                self.sidecar.copy_to(file)
            document = msgspec.structs.replace(
                self.document, sidecar=msgspec.structs.replace(record, name=name), parity=parity
            )
            with atomic_write(path) as file:
                file.writelines(encode_pieces(document))
            for old in previous - {name, getattr(parity, "name", None)}:
                (path.parent / old).unlink(missing_ok=True)
            remove_abandoned(path.parent, _sidecar_pattern(path))
        except OSError as error:
            raise ManifestError(
                f"cannot write {path}: {error.strerror}. Check the folder and the free space."
            ) from error
        return path.parent / name

    def _write_parity(self, path: Path) -> SidecarRecord | msgspec.UnsetType:
        record = self.document.parity
        if record is msgspec.UNSET:
            return record
        name = sidecar_name(path, record.digest, PARITY_SUFFIX)
        target = path.parent / name
        here = self.folder is not None and (self.folder / record.name).resolve()
        if here != target.resolve():
            source = self.parity or self._parity_file(record)
            with atomic_write(target) as file:
                source.copy_to(file)
        return msgspec.structs.replace(record, name=name)

    def calibrated(
        self,
        calibration: Calibration,
        super_weights: tuple[SuperWeight, ...],
        canary_logits: NDArray[np.float32],
    ) -> Manifest:
        """Return a manifest of the same weights that also holds what running the model taught.

        ``super_weights`` replaces those of the manifest; ``canary_logits`` of shape (vocabulary,)
        goes into the sidecar, in place of earlier ones. Close both manifests.
        """
        specs = [s for n, view in enumerate(self.views()) for s in array_specs(n, view)]
        logits = ArraySpec(CANARY_LOGITS, np.dtype(np.float32), canary_logits.shape)
        writer = SidecarWriter([*specs, logits])
        for spec in specs:
            self.sidecar.copy_array(spec, writer)
        writer.write(CANARY_LOGITS, 0, canary_logits)
        sidecar = writer.finish()
        document = msgspec.structs.replace(
            self.document,
            salience=msgspec.structs.replace(self.document.salience, super_weights=super_weights),
            calibration=calibration,
            sidecar=companion_record(sidecar),
        )
        return Manifest(document, sidecar, self.parity, self.folder)

    def canary_logits(self) -> NDArray[np.float32]:
        """Return the recorded logits of the canary's last position, shape (vocabulary,).

        Raises ManifestError for a manifest without calibration.
        """
        if self.document.calibration is None:
            raise ManifestError(
                "the manifest holds no calibration; `weightguard calibrate` adds it"
            )
        return self.sidecar.read(CANARY_LOGITS)

    def views(self) -> list[TensorView]:
        """Return the recorded tensors in number order, as views without bytes."""
        return [recorded_view(n, r) for n, r in sorted(self.document.tensors.items())]

    @property
    def numbers(self) -> dict[str, int]:
        """The number of each tensor in the sidecar's array names."""
        return {name: number for number, name in enumerate(sorted(self.document.tensors))}

    def close(self) -> None:
        """Close the sidecar, and the parity where it is open."""
        self.sidecar.close()
        if self.parity is not None:
            self.parity.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def sidecar_name(path: Path, digest: str, suffix: str = SIDECAR_SUFFIX) -> str:
    """Return the name of a sidecar of the manifest ``path``: ``STEM-DIGITS.sidecar``."""
    stem = path.name.removesuffix(".json")
    return f"{stem}-{digest.partition(':')[2][:SIDECAR_NAME_DIGITS]}{suffix}"


def companion_record(sidecar: Sidecar) -> SidecarRecord:
    """Return what a manifest says of a sidecar that has no name yet."""
    return SidecarRecord(UNWRITTEN, sidecar.file.size, sidecar.digest())


def encode(document: ManifestDocument) -> bytes:
    """Return the canonical JSON: sorted keys, one space of indent, ASCII, shortest floats."""
    return b"".join(encode_pieces(document))


def encode_pieces(document: ManifestDocument) -> Iterator[bytes]:
    """Yield the canonical JSON, a piece a tensor: all of it as objects takes 20 times the room."""
    # a line break within a string would be escaped, so this line is there once
    place = '\n "tensors": {'
    before, after = _canonical(msgspec.structs.replace(document, tensors={})).split(place)
    yield (before + place).encode("ascii")
    for number, name in enumerate(sorted(document.tensors)):
        lines = _canonical({name: document.tensors[name]}).removeprefix("{").removesuffix("\n}")
        yield ("," * (number > 0) + lines.replace("\n", "\n ")).encode("ascii")
    yield ("\n " * bool(document.tensors) + after + "\n").encode("ascii")


def _canonical(value: object) -> str:
    return json.dumps(
        msgspec.to_builtins(value), sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False
    )


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


class _Kept(msgspec.Struct):
    """What is read of a file that a manifest would replace."""

    schema: str
    sidecar: dict[str, Any] = {}
    parity: dict[str, Any] = {}


def _kept(path: Path) -> _Kept | None:
    """Return what the manifest at ``path`` says of itself, of whatever version, or None."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES or not path.is_file():
            return None
        # weights of many gigabytes need not be read to see that they are no JSON
        with path.open("rb") as file:
            if file.read(1) != b"{":
                return None
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, ValueError, RecursionError):
        return None
    return kept if re.fullmatch(r"weightguard-manifest-v\d{1,9}", kept.schema) else None


def is_manifest(path: Path) -> bool:
    """Return whether the file is a manifest of any version, by what it says of itself."""
    return _kept(path) is not None


def refuse_replacing(path: Path) -> None:
    """Raise ManifestError when ``path`` is a file that holds anything but a manifest."""
    try:
        size = path.lstat().st_size
    except OSError:
        return
    if size and not is_manifest(path):
        raise ManifestError(
            f"{str(path)!r} exists and is no manifest: it would be overwritten. Name another file."
        )


def _previous_companions(path: Path) -> set[str]:
    """Return the names of what belongs to the manifest now at ``path`` and goes with it."""
    kept = _kept(path)
    names = () if kept is None else (kept.sidecar.get("name"), kept.parity.get("name"))
    pattern = re.compile(_sidecar_pattern(path))
    return {name for name in names if isinstance(name, str) and pattern.fullmatch(name)}


def _sidecar_pattern(path: Path) -> str:
    stem = re.escape(path.name.removesuffix(".json"))
    return rf"{stem}-[0-9a-f]{{{SIDECAR_NAME_DIGITS}}}\.(?:sidecar|parity)"


__all__ = [
    "BLOCK_DIGEST",
    "RESIDUES",
    "SCHEMA",
    "ExactValue",
    "FileRecord",
    "Manifest",
    "ManifestDocument",
    "SidecarRecord",
    "StatisticsRecord",
    "TensorRecord",
    "companion_record",
    "encode",
    "encode_pieces",
    "exact_value",
    "is_manifest",
    "recorded_view",
    "refuse_replacing",
    "sidecar_name",
    "tensor_record",
    "weights_digest",
]
