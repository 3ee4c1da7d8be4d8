"""calibrate(): from a checkpoint and its manifest to a manifest that knows a sound forward pass."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from weightguard import Manifest, open_checkpoint
from weightguard.calibration import Ablation, Calibration, FalseAlarms
from weightguard.checkpoint import Checkpoint
from weightguard.errors import WeightguardError
from weightguard.manifest import ManifestDocument, exact_value
from weightguard.progress import Progress
from weightguard.salient import SuperWeight, significant
from weightguard.scan.values import exact_bits
from weightguard_integrations.torch.ablation import (
    CONFIRMATION_THRESHOLD,
    FIRST_NOMINEES,
    Effect,
    Search,
    confirmed_places,
)
from weightguard_integrations.torch.activations import (
    Limits,
    calibrate_limits,
    count_alarms,
    profiles,
)
from weightguard_integrations.torch.attested import check_checkpoint, check_loaded, check_numbers
from weightguard_integrations.torch.blocks import find_blocks, logits_of, mean_loss
from weightguard_integrations.torch.canary import record_canary
from weightguard_integrations.torch.heldout import judge
from weightguard_integrations.torch.loading import LoadedModel, check_loadable, load_model
from weightguard_integrations.torch.memory import check_memory
from weightguard_integrations.torch.probe import record_probes
from weightguard_integrations.torch.projections import (
    Projection,
    find_projections,
    named_as_recorded,
    uncalibrated,
)
from weightguard_integrations.torch.prompts import Prompts, make_prompts, read_text
from weightguard_integrations.torch.spikes import Place
from weightguard_integrations.torch.stack import deterministic, require_torch, stack_of
from weightguard_integrations.torch.steps import Steps

if TYPE_CHECKING:
    from torch import nn

ESTIMATED_STEPS = 2 * FIRST_NOMINEES + 20
MAX_KNOWN = 16
"""Super weights of the manifest that are zeroed whether they spike or not."""


def calibrate(
    path: str | os.PathLike[str],
    manifest: Manifest | str | os.PathLike[str],
    *,
    prompts: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Return the checkpoint's manifest with what running the model taught.

    ``path`` is a folder with ``config.json`` or a GGUF file, ``prompts`` a file of calibration
    prompts, ``progress`` is called with (steps done, steps estimated). Equal stacks give equal
    bytes. Raises WeightguardError when torch is missing, the checkpoint is not the manifest's,
    does not fit memory or cannot be run. Close the result.
    """
    require_torch()
    if isinstance(manifest, Manifest):
        return _calibrate(Path(path), manifest, prompts, threads, progress)
    with Manifest.read(manifest) as opened:
        return _calibrate(Path(path), opened, prompts, threads, progress)


def _calibrate(
    path: Path,
    manifest: Manifest,
    prompts: str | os.PathLike[str] | None,
    threads: int | None,
    progress: Progress | None,
) -> Manifest:
    if prompts is not None:
        read_text(Path(prompts))  # a wrong file is better told of before the work than after
    steps = Steps(ESTIMATED_STEPS, progress)
    with open_checkpoint(path) as checkpoint, deterministic(threads):
        check_loadable(path, checkpoint)
        check_checkpoint(path, manifest, threads)
        check_numbers(manifest.document)
        check_memory(checkpoint.tensors)
        loaded = load_model(path, checkpoint)
        steps.advance()
        check_loaded(named_as_recorded(loaded.model, manifest.document), manifest.document)
        limit = int(getattr(loaded.config, "max_position_embeddings", 0) or 1 << 30)
        made = make_prompts(loaded.encode, loaded.vocabulary, prompts, limit)
        return _measure(manifest, checkpoint, loaded, made, steps)


def _measure(
    manifest: Manifest,
    checkpoint: Checkpoint,
    loaded: LoadedModel,
    prompts: Prompts,
    steps: Steps,
) -> Manifest:
    model, document = loaded.model, manifest.document
    projections = find_projections(model, document)
    blocks = find_blocks(model, loaded.config)
    limits, alarms = _activations(model, blocks, prompts, steps)
    baseline = _sound_loss(model, prompts)
    effects = _ablate(document, projections, model, prompts, baseline, steps)
    canary = record_canary(model, prompts.canary)
    calibration = Calibration(
        stack=stack_of(model),
        prompts=prompts.identity,
        baseline_loss=significant(baseline),
        confirmation_threshold=CONFIRMATION_THRESHOLD,
        ablations=_ablations(effects, projections),
        uncalibrated=uncalibrated(document, projections),
        massive_activations=limits.massive,
        activation_bounds=limits.bounds,
        false_alarms=alarms,
        canary=canary.record,
        probes=record_probes(model, prompts.probes),
    )
    weights = _super_weights(document, checkpoint, projections, effects)
    steps.finish()
    return manifest.calibrated(calibration, weights, canary.logits)


def _activations(
    model: nn.Module, blocks: nn.ModuleList, prompts: Prompts, steps: Steps
) -> tuple[Limits, FalseAlarms]:
    limits = calibrate_limits(list(profiles(model, blocks, prompts.activations)))
    steps.advance()
    return limits, count_alarms(judge(model, blocks, limits, prompts.held_out, steps))


def _sound_loss(model: nn.Module, prompts: Prompts) -> float:
    import torch

    for tokens in prompts.loss:
        logits_of(model, torch.tensor([list(tokens)]))
    return mean_loss(model, prompts.loss)


def _ablate(
    document: ManifestDocument,
    projections: Sequence[Projection],
    model: nn.Module,
    prompts: Prompts,
    baseline: float,
    steps: Steps,
) -> list[Effect]:
    search = Search(model, projections, prompts.loss, baseline, steps)
    return search.run(known_places(document, projections))


def known_places(
    document: ManifestDocument, projections: Sequence[Projection]
) -> tuple[Place, ...]:
    """Return the manifest's super weights that are tried whether they spike or not."""
    by_tensor = {projection.tensor: projection for projection in projections}
    known = [
        Place(weight.tensor, *by_tensor[weight.tensor].position(weight.index))
        for weight in earlier_super_weights(document)
        if weight.tensor in by_tensor and len(weight.index) == 2
    ]
    return tuple(known[:MAX_KNOWN])


def _ablations(
    effects: Iterable[Effect], projections: Sequence[Projection]
) -> tuple[Ablation, ...]:
    by_tensor = {projection.tensor: projection for projection in projections}
    return tuple(
        Ablation(
            effect.places[0].tensor,
            tuple(by_tensor[p.tensor].index(p.row, p.column) for p in effect.places),
            effect.spike,
            effect.loss_change,
            effect.confirmed,
        )
        for effect in effects
    )


def earlier_super_weights(document: ManifestDocument) -> list[SuperWeight]:
    """Return the manifest's super weights as they were before any calibration."""
    earlier = []
    for weight in document.salience.super_weights:
        if weight.status != "confirmed":
            earlier.append(weight)
        elif weight.source is not None or weight.scores:
            status = "nominated" if weight.source is None else "published"
            earlier.append(msgspec.structs.replace(weight, status=status, loss_change=None))
    return earlier


def _super_weights(
    document: ManifestDocument,
    checkpoint: Checkpoint,
    projections: Sequence[Projection],
    effects: Iterable[Effect],
) -> tuple[SuperWeight, ...]:
    """Return the confirmed super weights, the greatest effect first, then the others."""
    earlier = {(w.tensor, w.index): w for w in earlier_super_weights(document)}
    confirmed: dict[tuple[str, tuple[int, ...]], SuperWeight] = {}
    by_tensor = {projection.tensor: projection for projection in projections}
    for place, change in confirmed_places(effects).items():
        projection = by_tensor[place.tensor]
        index = projection.index(place.row, place.column)
        weight = earlier.get((place.tensor, index)) or _fresh(checkpoint, projection, place)
        confirmed[place.tensor, index] = msgspec.structs.replace(
            weight, status="confirmed", loss_change=change
        )
    rest: Mapping[tuple[str, tuple[int, ...]], SuperWeight] = earlier
    return (*confirmed.values(), *(w for key, w in rest.items() if key not in confirmed))


def _fresh(checkpoint: Checkpoint, projection: Projection, place: Place) -> SuperWeight:
    """Return the record of a weight that the manifest did not name yet."""
    index = projection.index(place.row, place.column)
    tensor = next(t for t in checkpoint.tensors if projection.tensor in (t.name, *t.aliases))
    exact = exact_value(tensor.dtype.scalar, exact_bits(tensor, tensor.element(index)))
    live = float(projection.weight[place.row, place.column])
    if abs(live - exact.value) > 1e-6 * abs(exact.value):
        raise WeightguardError(
            f"element {index} of {projection.tensor[:200]!r} is {exact.value} in the checkpoint "
            f"and {live} in the model: transformers loads it in a way that is not known here. "
            "Calibrate the checkpoint in the layout of its own architecture."
        )
    return SuperWeight(projection.tensor, index, exact.bits, float(exact.value), "confirmed", {})
