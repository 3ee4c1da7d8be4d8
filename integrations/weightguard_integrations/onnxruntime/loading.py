"""Loading: from files to a session that runs what was verified, and the guard that holds it to it.

A sealed session comes from the cache, or is sealed first; any other one is loaded from private
copies of the files. In the end stands a guard, or there is no session.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort

from weightguard.checkpoint import Checkpoint
from weightguard.errors import WeightguardError
from weightguard.guard import Gap, Guard, Settings
from weightguard.guard.ledger import Place
from weightguard.manifest import Manifest
from weightguard_integrations.onnxruntime import canary as canaries
from weightguard_integrations.onnxruntime import sealing
from weightguard_integrations.onnxruntime.cache import Cache, StaleEntry
from weightguard_integrations.onnxruntime.canary import Feed, Outputs
from weightguard_integrations.onnxruntime.inplace import Buffer
from weightguard_integrations.onnxruntime.memory import Memory, SessionAdapter
from weightguard_integrations.onnxruntime.options import Mode, Recipe
from weightguard_integrations.onnxruntime.sealed import (
    SealedFile,
    SealedModel,
    SealedRuntime,
    prove,
)
from weightguard_integrations.onnxruntime.source import (
    RUNTIME_ERRORS,
    given_external_data,
    graph_bytes,
    graph_doubt,
    open_model,
    parsed,
    readable_failure,
    require_sound,
)
from weightguard_integrations.onnxruntime.watch import CanaryWatch


class Startable(Protocol):
    """A session that is not yet there: it is started once its model is verified."""

    def start(self, graph: bytes, options: ort.SessionOptions | None) -> object:
        """Make the runtime's session of ``graph``, and return it."""
        ...

    def start_sealed(self, sealed: SealedRuntime) -> object:
        """Make the runtime's session of a sealed model, and return it."""
        ...

    def get_inputs(self) -> Sequence[Any]:
        """Return the inputs of the session that was started."""
        ...

    def watched(self, feeds: Sequence[Feed], outputs: tuple[str, ...]) -> CanaryWatch:
        """Return what runs these feeds now and then, and expects these digests of outputs."""
        ...

    def run_plainly(self, feed: Feed) -> Outputs:
        """Run without what comes before a run."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to load: the model at ``path`` as ``manifest`` holds it, and how it is to run."""

    path: str | os.PathLike[str]
    manifest: Manifest | None
    recipe: Recipe
    feeds: tuple[Feed, ...] | None
    settings: Settings
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A session's guard and canary; ``sealed`` makes its like, ``buffer`` holds its weights."""

    guard: Guard
    watch: CanaryWatch
    sealed: SealedRuntime | None = None
    buffer: Buffer | None = None


def load_sealed(
    session: Startable, adapter: SessionAdapter, wanted: Wanted, cache: Cache
) -> Loaded:
    """Start ``session`` from an entry of the cache, made first where there is none.

    Raises IntegrityError and CheckpointError of the files, and WeightguardError where the model
    cannot be sealed or kept.
    """
    order = sealing.order_of(
        wanted.path, wanted.manifest, wanted.recipe, wanted.feeds, wanted.variant
    )
    loaded: list[Loaded] = []

    def build(work: Path) -> None:
        sealing.fill(order, wanted.path, wanted.manifest, work)

    def load(place: Path) -> None:
        runtime = SealedRuntime(SealedModel.read(place, order.stated()), cache, order.recipe)
        loaded.append(_guard_sealed(session, adapter, wanted, runtime))

    try:
        cache.obtain(order.key, build, load)
    except StaleEntry as error:
        raise WeightguardError(
            f"the sealed model was damaged as soon as it was written: {error}. Check the disk "
            "and the memory of this machine"
        ) from error
    _note_graph(loaded[-1].guard, order.graph, wanted.manifest)
    return loaded[-1]


def _guard_sealed(
    session: Startable, adapter: SessionAdapter, wanted: Wanted, runtime: SealedRuntime
) -> Loaded:
    """Show that what is mapped is what was sealed and what runs, and guard it."""
    try:
        owner = session.start_sealed(runtime)
    except RUNTIME_ERRORS as error:
        raise StaleEntry(f"onnxruntime cannot load it: {error!s:.300}") from error
    model = runtime.model
    watch = session.watched(model.feeds, model.entry.outputs)
    deviations: list[str | None] = []
    adapter.memory = runtime.proved(owner, lambda: deviations.append(watch.deviation()))
    if deviations != [None]:
        raise StaleEntry(f"its canary deviates: {deviations[0]}")
    guard = Guard(adapter, wanted.manifest, wanted.settings, golden=SealedFile(model))
    # what became the baseline is what was sealed, unless it changed in between
    runtime.verify(adapter.memory)
    return Loaded(guard, watch, sealed=runtime)


def load_plainly(session: Startable, adapter: SessionAdapter, wanted: Wanted, mode: Mode) -> Loaded:
    """Start ``session`` from private copies of the files, verified first.

    Raises IntegrityError and CheckpointError of the files, and WeightguardError where onnxruntime
    cannot load them.
    """
    with open_model(wanted.path, private=True) as checkpoint, ExitStack() as failing:
        require_sound(checkpoint, wanted.manifest)
        graph = graph_bytes(checkpoint)
        model = parsed(graph)
        options = wanted.recipe.fitted(checkpoint).fresh(profiled=True)
        buffer = Buffer(checkpoint, model) if mode == "inplace" else None
        if buffer is not None:
            failing.callback(buffer.close)
            buffer.give(options)
        with given_external_data(checkpoint, options), readable_failure():
            owner = session.start(graph, options)
        run = session.run_plainly
        chosen = wanted.feeds or canaries.chosen(run, session.get_inputs(), model)
        watch = session.watched(chosen, canaries.stable(run, chosen))
        if buffer is None:
            adapter.memory = Memory(None, {}, (_opaque(checkpoint),))
        else:
            memory = buffer.memory(checkpoint, owner)
            adapter.memory = prove(memory, [buffer.mapping()], watch.deviation)
        # an opaque session has no live tensors that a manifest could be compared with
        attesting = wanted.manifest if buffer is not None else None
        guard = Guard(adapter, attesting, wanted.settings, golden=buffer)
        _note_graph(guard, hashlib.sha256(graph).hexdigest(), wanted.manifest)
        failing.pop_all()
    return Loaded(guard, watch, buffer=buffer)


def _note_graph(guard: Guard, graph_sha256: str, manifest: Manifest | None) -> None:
    doubt = graph_doubt(graph_sha256, manifest)
    if doubt is not None:
        guard.report_incident(Place("graph", aspect="attestation"), doubt)


def _opaque(checkpoint: Checkpoint) -> Gap:
    return Gap("all weights", "unreachable", checkpoint.nbytes, "an opaque session: see the canary")
