"""``guard(model, manifest)``: keeps a served PyTorch model equal to what was attested."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from weightguard import Manifest, WeightguardError
from weightguard.guard import (
    MemoryMetrics,
    Metrics,
    Pace,
    Piece,
    Settings,
)
from weightguard.guard.quantities import parse_bytes, parse_rate, parse_seconds
from weightguard.guard.reactions import Reaction
from weightguard.guard.shares import Declared, Ranks
from weightguard_integrations.torch.asked import (
    golden_copy,
    require_live,
    require_path,
    require_sense,
)
from weightguard_integrations.torch.live import TorchAdapter, root_of
from weightguard_integrations.torch.manifests import PathOrManifest, opened
from weightguard_integrations.torch.shards import Told
from weightguard_integrations.torch.torch_guard import TorchGuard

if TYPE_CHECKING:
    from torch import nn

_guards: weakref.WeakKeyDictionary[nn.Module, weakref.ref[TorchGuard]] = weakref.WeakKeyDictionary()
_making: set[int] = set()
"""The modules whose guards are being made, by identity."""
_lock = threading.Lock()


def guard(  # noqa: PLR0913 - the operator's settings, each with a default
    model: nn.Module,
    manifest: PathOrManifest | None = None,
    *,
    scrub: str | int | None = "250MB/s",
    step_budget: str | int = "8MiB",
    sentinels: bool = True,
    canary: str | float | None = "60s",
    on_incident: Sequence[Reaction] = ("log", "metrics", "repair", "raise"),
    golden: str | os.PathLike[str] | None = None,
    names: Mapping[str, str] | None = None,
    pieces: Mapping[str, Sequence[Piece]] | None = None,
    ranks: Ranks | None = None,
    metrics: Metrics | None = None,
    threads: int = 1,
) -> TorchGuard:
    """Seal a loaded model and return its guard; ``with`` it or ``start()`` it to begin.

    Every parameter and buffer is read once and compared with ``manifest`` (a path or an open
    one), by name, by content, and through casts that lose no bits; without a manifest all are
    trusted as they are found, and an incident says so. ``scrub`` is the rate of the background
    thread, None for none; ``step_budget`` is checked from one forward pass to the next: before it
    begins, what the thread did not reach meanwhile. With ``sentinels``
    activations are held to the limits of a calibrated manifest; ``canary`` is how often its
    canary runs, beside the requests. ``golden`` is a
    checkpoint that damage beyond the residues is repaired from. ``names`` maps names of live
    tensors to the manifest's; ``pieces`` says of which attested byte ranges a fused or sliced one
    is made up (``packed_pieces``), and ``ranks`` (``GroupRanks(group)``) who verifies together
    those that are not whole rows. DTensors need neither, as they say how they are split. Then,
    as with ``ranks``, sealing is a collective call of all their ranks, here and in an update that
    names a manifest. Raises WeightguardError for the manifest or golden copy of another model, for
    settings, names and pieces that cannot be, and for a model that an open guard watches already;
    ManifestError and CheckpointError for paths that cannot be read.
    """
    require_sense(model, on_incident, threads)
    require_path("manifest", manifest, Manifest)
    require_path("golden", golden)
    period = None if canary is None else parse_seconds(canary)
    with _alone(root_of(model)), ExitStack() as undo, opened(manifest) as read:
        copy = None if golden is None else golden_copy(golden, read)
        if copy is not None:
            undo.callback(copy.close)
        adapter = TorchAdapter(model)
        live = dict(adapter.named())
        told, declared = Told(names or {}, pieces or {}, ranks), Declared()
        require_live("names", told.names, live)
        require_live("pieces", told.pieces, live)
        if read is not None:
            declared = told.declaration(live, read)
        settings = Settings(
            name=type(root_of(model)).__name__,
            on_incident=on_incident,
            pace=None if scrub is None else Pace(parse_rate(scrub)),
            step_bytes=parse_bytes(step_budget),
            threads=threads,
            metrics=metrics or MemoryMetrics(),
            declared=declared,
        )
        made = TorchGuard(adapter, read, settings, names=names, golden=copy)
        made.told, made.golden = told, copy
        made.pin_super_weights(read)
        calibration = None if read is None else read.document.calibration
        if period is not None and calibration is not None:
            recorded = calibration.canary
            made.set_canary(recorded.tokens, period, recorded.tolerances)
        if sentinels and calibration is not None:
            made.set_sentinels(calibration)
        undo.pop_all()
        _guards[root_of(model)] = weakref.ref(made)
    return made


@contextmanager
def _alone(root: nn.Module) -> Iterator[None]:
    """Raise WeightguardError where a module has a guard already, or another thread makes one."""
    with _lock:
        watched = _guards.get(root, lambda: None)()
        if id(root) in _making or (watched is not None and not watched.closed):
            raise WeightguardError("this model has a guard already: close that one first")
        _making.add(id(root))
    try:
        yield
    finally:
        with _lock:
            _making.discard(id(root))
