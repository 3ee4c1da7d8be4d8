"""What an operator asks of ``guard``: refused in one line where it cannot be meant."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from weightguard import Manifest, WeightguardError
from weightguard.errors import CheckpointError
from weightguard.guard import GoldenCheckpoint
from weightguard.guard.reactions import Reaction
from weightguard.tensor import TensorView


def require_sense(model: object, on_incident: Sequence[Reaction], threads: int) -> None:
    """Raise WeightguardError for what is no model, no list of reactions, no number of threads."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise WeightguardError(
            f"a {type(model).__name__} is no torch.nn.Module: give the model that is called"
        )
    if isinstance(on_incident, str) or not isinstance(on_incident, Collection):
        raise WeightguardError(f"on_incident is a list: [{on_incident!r:.40}]")
    if not isinstance(threads, int) or threads < 1:
        raise WeightguardError(f"{threads!r:.40} threads cannot seal a model: give 1 or more")


def require_path(what: str, given: object, *others: type) -> None:
    """Raise WeightguardError for what is neither a path, nor None, nor one of the other types."""
    if not (given is None or isinstance(given, (str, os.PathLike, *others))):
        raise WeightguardError(f"{what} is a path, not {type(given).__name__}")


def require_live(what: str, named: Mapping[str, object], live: Collection[str]) -> None:
    """Raise WeightguardError where the operator names a live tensor that there is not."""
    unknown = next((name for name in named if name not in live), None)
    if unknown is not None:
        raise WeightguardError(
            f"`{what}` names {unknown[:200]!r}, which is no parameter or buffer of the model"
        )


def golden_copy(path: str | os.PathLike[str], manifest: Manifest | None) -> GoldenCheckpoint:
    """Open a golden copy.

    Raises CheckpointError where it cannot be read, and WeightguardError where it has none of the
    manifest's tensors.
    """
    try:
        copy = GoldenCheckpoint(path)
    except CheckpointError as error:
        raise CheckpointError(error.finding, f"the golden copy cannot be used: {error}") from error
    records = {} if manifest is None else manifest.document.tensors
    kinds = {name: (record.dtype, record.shape) for name, record in records.items()}
    if kinds and not any(_kind(copy.origin(name)) == kind for name, kind in kinds.items()):
        copy.close()
        raise WeightguardError(
            "the golden copy has none of the manifest's tensors: it is another model, or was saved "
            "in another dtype. Name the checkpoint that the manifest is of."
        )
    return copy


def _kind(view: TensorView | None) -> tuple[str, tuple[int, ...]] | None:
    return None if view is None else (view.dtype.name, view.shape)
