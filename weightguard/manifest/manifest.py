"""The manifest: all fingerprints of a checkpoint, as canonical JSON beside one sidecar file.

``NAME.weightguard.json`` is for people and signatures; it holds the digest of the sidecar, whose
name carries the first digits of that digest. So a new manifest never touches the old one's
sidecar, and renaming the JSON into place is the one moment at which the manifest changes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from weightguard.atomic import atomic_write, remove_abandoned
from weightguard.calibration import Calibration
from weightguard.errors import ManifestError
from weightguard.manifest.companions import (
    PARITY_SUFFIX,
    previous_companions,
    refuse_replacing,
    sidecar_name,
    sidecar_pattern,
)
from weightguard.manifest.document import CANARY_LOGITS, ManifestDocument, SidecarRecord
from weightguard.manifest.encoding import encode_pieces
from weightguard.manifest.reading import open_sidecar, read_document
from weightguard.manifest.records import companion_record, recorded_view
from weightguard.parity import Parity
from weightguard.salient import SuperWeight
from weightguard.sidecar import FETCH_AGAIN, ArraySpec, Sidecar, SidecarWriter, array_specs
from weightguard.tensor import TensorView

_OR_WITHOUT_PARITY = FETCH_AGAIN.removesuffix(".") + ", or go without it (--no-parity)."


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
        document = read_document(path)
        return cls(document, open_sidecar(document, path.parent), folder=path.parent)

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
        previous = previous_companions(path)
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
            remove_abandoned(path.parent, sidecar_pattern(path))
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

    def __exit__(self, *_exc: object) -> None:
        self.close()
