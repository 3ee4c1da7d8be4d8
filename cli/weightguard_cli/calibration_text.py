"""A calibration in a few lines for people."""

from __future__ import annotations

import math
from collections.abc import Iterator

from weightguard.calibration import Ablation, Calibration, MassiveActivation
from weightguard.manifest import ManifestDocument
from weightguard.salient import SuperWeight
from weightguard.units import counted
from weightguard_cli.escape import escape_name

MAX_SHOWN = 12


def calibration_lines(document: ManifestDocument) -> Iterator[str]:
    """Yield what the manifest's calibration says; nothing where there is none."""
    calibration = document.calibration
    if calibration is None:
        return
    confirmed = [w for w in document.salience.super_weights if w.status == "confirmed"]
    yield from _super_weights(calibration, confirmed)
    yield from _activations(calibration)
    yield from _canary(calibration)


def _super_weights(calibration: Calibration, confirmed: list[SuperWeight]) -> Iterator[str]:
    tried = counted(len(calibration.ablations), "ablation")
    loss = f"loss {calibration.baseline_loss:.4g} nats a token"
    yield (
        f"Super weights: {len(confirmed)} confirmed by {tried} ({loss}; "
        f"confirmed from +{calibration.confirmation_threshold:g}, a pair from as much beyond "
        "its stronger weight alone)"
    )
    effects = [effect for effect in calibration.ablations if effect.confirmed]
    for effect in effects[:MAX_SHOWN]:
        yield f"  {_effect(effect)}"
    if len(effects) > MAX_SHOWN:
        yield f"  and {len(effects) - MAX_SHOWN} more"
    if calibration.uncalibrated:
        names = counted(len(calibration.uncalibrated), "output projection")
        yield f"  not examined: {names}, the first {escape_name(calibration.uncalibrated[0])}"


def _effect(effect: Ablation) -> str:
    places = " and ".join(f"[{','.join(map(str, index))}]" for index in effect.indices)
    together = " together" if len(effect.indices) > 1 else ""
    factor = f"perplexity x{math.exp(min(effect.loss_change, 700.0)):.3g}"
    return (
        f"{escape_name(effect.tensor)}{places}{together}: +{effect.loss_change:.4g} nats, {factor}"
    )


def _activations(calibration: Calibration) -> Iterator[str]:
    massive = calibration.massive_activations
    yield f"Massive activations: {counted(len(massive), 'channel')}"
    for activation in massive[:MAX_SHOWN]:
        yield f"  {_massive(activation)}"
    alarms = calibration.false_alarms
    yield f"False alarms: {alarms.alarms} in {counted(alarms.prompts, 'held-out prompt')}"
    for kind, count in alarms.by_kind.items():
        if count.alarms:
            yield f"  {escape_name(kind)}: {count.alarms} of {count.prompts}"


def _massive(activation: MassiveActivation) -> str:
    layers = [band.layer for band in activation.bands]
    where = "moving" if activation.position is None else str(activation.position)
    low = min(band.low for band in activation.bands)
    high = max(band.high for band in activation.bands)
    span = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"
    return f"channel {activation.channel}, {span}, position {where}: {low:.4g} to {high:.4g}"


def _canary(calibration: Calibration) -> Iterator[str]:
    canary, stack = calibration.canary, calibration.stack
    tolerances = ", ".join(
        f"{value:.2g} in {escape_name(dtype)}" for dtype, value in canary.tolerances.items()
    )
    yield (
        f"Canary: {counted(len(canary.tokens), 'token')}, bit for bit on this stack, "
        f"within {tolerances} elsewhere"
    )
    yield f"Probe: {counted(len(calibration.probes), 'sequence')}"
    yield (
        f"Stack: torch {escape_name(stack.torch)}, {escape_name(stack.dtype)} on "
        f"{escape_name(stack.device)}, {counted(stack.threads, 'thread')}, "
        f"{escape_name(stack.processor)}"
    )
