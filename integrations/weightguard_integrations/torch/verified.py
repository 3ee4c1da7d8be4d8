"""Loading weights that are verified while they are read: nothing can change in between."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from weightguard import IntegrityError, Manifest, Severity, WeightguardError, open_checkpoint
from weightguard.checkpoint import Checkpoint
from weightguard.compare import Observed, TensorComparison, match_names
from weightguard.finding import Coverage, Finding, Report, ordered
from weightguard.rules.equality import check_equality
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.scan.fingerprint import TensorObserver
from weightguard.scan.stream import scan_tensors
from weightguard.tensor import ByteSource, TensorView
from weightguard_integrations.torch.dtypes import torch_dtype
from weightguard_integrations.torch.manifests import PathOrManifest, opened

if TYPE_CHECKING:
    import torch


def load_verified(
    path: str | os.PathLike[str], manifest: PathOrManifest, *, threads: int | None = None
) -> dict[str, torch.Tensor]:
    """Return the state dict of the checkpoint at ``path``, every byte equal to the manifest's.

    The bytes go into private memory as they are hashed, so that the file may change afterwards,
    or while it is read, and the returned tensors are still what was verified. Tied names share
    one tensor. Raises IntegrityError with the whole report where anything differs, is missing or
    was not attested; CheckpointError, ManifestError, and WeightguardError for tensors of a dtype
    that torch has not.
    """
    with opened(manifest) as recorded, open_checkpoint(path) as checkpoint:
        assert recorded is not None
        memory = {view.name: _allocate(view) for view in checkpoint.tensors}
        captured = replace(
            checkpoint,
            tensors=tuple(
                replace(view, source=_Capture(view.source, memory[view.name][1]))
                for view in checkpoint.tensors
            ),
        )
        findings = _compare(captured, recorded, threads)
        if any(found.level >= Severity.ERROR for found in findings):
            raise IntegrityError(_report(captured, findings))
    return {
        name: memory[view.name][0]
        for view in captured.tensors
        for name in (view.name, *view.aliases)
    }


@dataclass(frozen=True, slots=True)
class _Capture:
    """A source that keeps what it reads: whoever is given the bytes is given those kept."""

    source: ByteSource
    memory: NDArray[np.uint8]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See ByteSource."""
        # what is read beyond a block is the next one's to keep, which may have been read before
        own = min(len(buffer), BLOCK_BYTES - offset % BLOCK_BYTES)
        kept = self.memory[offset : offset + own]
        self.source.read_into(offset, kept.data)
        buffer[:own] = kept.data
        if own < len(buffer):
            self.source.read_into(offset + own, buffer[own:])


def _allocate(view: TensorView) -> tuple[torch.Tensor, NDArray[np.uint8]]:
    """Return an uninitialised tensor of the view's type, and its bytes."""
    import torch

    dtype = torch_dtype(view.dtype.name)
    if dtype is None:
        raise WeightguardError(
            f"{view.name[:200]!r} is {view.dtype.name}, which torch has no dtype for: load it with "
            "the library of its format, and guard the model then"
        )
    tensor = torch.empty(view.shape, dtype=dtype)
    return tensor, tensor.reshape(-1).view(torch.uint8).numpy()


def _compare(
    checkpoint: Checkpoint, manifest: Manifest, threads: int | None
) -> tuple[Finding, ...]:
    names, observed, numbers = match_names(checkpoint, manifest), Observed(), manifest.numbers

    def observe(tensor: TensorView) -> Sequence[TensorObserver]:
        name = next(iter(names.matched.get(tensor.name, ())), None)
        record = None if name is None else manifest.document.tensors[name]
        number = None if name is None else numbers[name]
        return [TensorComparison(tensor, record, manifest, number, observed)]

    algorithm = manifest.document.digest_algorithm
    scan_tensors(checkpoint.tensors, observe, digest=algorithm, threads=threads)
    return ordered([*checkpoint.findings, *check_equality(checkpoint, manifest, names, observed)])


def _report(checkpoint: Checkpoint, findings: tuple[Finding, ...]) -> Report:
    tensors, nbytes = len(checkpoint.tensors), checkpoint.nbytes
    coverage = Coverage(tensors, tensors + checkpoint.unread, nbytes, nbytes, checkpoint.unread)
    return Report(str(checkpoint.path), checkpoint.format, True, findings, coverage)
