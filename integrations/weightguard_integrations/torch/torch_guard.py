"""The guard of a PyTorch model: sentinels, a canary and super weights beside digests of blocks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

from weightguard import IntegrityError, Manifest, WeightguardError
from weightguard.calibration import Calibration
from weightguard.finding import Finding, Report, finding
from weightguard.guard import (
    GoldenCheckpoint,
    Guard,
    Incident,
    Piece,
    super_weight_pins,
)
from weightguard.guard.aftermath import OF_RUNS, check_after
from weightguard.guard.background import Background
from weightguard.guard.incident import SENTINEL, UNCOVERED
from weightguard.guard.ledger import Place
from weightguard.guard.shares import Declared, Ranks
from weightguard_integrations.torch.live import TorchAdapter
from weightguard_integrations.torch.live_canary import LiveCanary, canary_finding
from weightguard_integrations.torch.manifests import PathOrManifest, opened
from weightguard_integrations.torch.sentinels import (
    Alarm,
    Sentinels,
    find_block_list,
    find_width,
    fits,
)
from weightguard_integrations.torch.shards import Told

ALARM_PERIOD = 60.0
"""Seconds in which sentinels have all weights checked once: no prompt shall stall a server."""
SENTINEL_PERIOD = 1.0
"""Seconds after which a background thread reads sentinels that no forward pass read."""
CANARY_AGAIN = 1.0
"""Seconds after which a canary runs again that was wrong while damage was repaired."""
BLIND_PASSES = 100
"""Forward passes after which sentinels that saw none are said to be blind."""
_CANARY = Place("", aspect="canary")
_by_canary = ContextVar("the forward pass of this thread is a canary's", default=False)


class TorchGuard(Guard):
    """The guard of a PyTorch model; see ``weightguard.guard.Guard``."""

    golden: GoldenCheckpoint | None = None
    told = Told({}, {}, None)
    _canary: LiveCanary | None = None
    _sentinels: Sentinels | None = None
    _unseen: int = 0
    _disturbed: bool = False
    """Whether the last canary ran while damage came and was repaired, so that it tells little."""
    _alarmed: float = -ALARM_PERIOD

    def set_canary(
        self, tokens: Sequence[int], period: float, tolerances: Mapping[str, float] | None = None
    ) -> None:
        """Record what the model answers ``tokens`` now, and ask again every ``period`` seconds.

        For a language model, before the guard is started. ``tolerances``: see LiveCanary.
        """
        assert isinstance(self.adapter, TorchAdapter)
        self._canary = LiveCanary(self.adapter.root, tokens, tolerances or {})
        soon = min(period, CANARY_AGAIN)
        run = Background(
            self.run_canary, lambda: soon if self._disturbed else period, "weightguard-canary"
        )
        self._presence.add(run)

    def run_canary(self) -> bool:
        """Run the canary now; return whether its logits are those of the sealed model.

        Where they are not, or the model raises, all weights are checked, and repaired by policy,
        before it runs once more: what is still wrong then no digest explains, and is WG906 or
        WG909. Without a canary, True.
        """
        if self._canary is None or self.closed:
            return True
        if any(i.code not in OF_RUNS for i in self._response.refused_for()):
            return False  # damage that forward passes raise for is known already
        try:
            wrong, repaired = canary_finding(self._difference), 0
            if wrong is not None:
                checked = check_after(self)
                wrong, repaired = canary_finding(self._difference, checked), checked.repaired
            self._disturbed = wrong is not None and repaired > 0
        except IntegrityError:
            return False  # a layer that checks itself raised, and said why
        except WeightguardError:
            if not self.closed:
                raise
            return False  # it was closed meanwhile, and checks no more
        if wrong is None:
            self.report_sound(_CANARY)
        elif not self.closed:
            self.report_incident(_CANARY, wrong)
        return wrong is None

    def set_sentinels(self, calibration: Calibration | None) -> None:
        """Hold activations to the limits of ``calibration``, None for none."""
        assert isinstance(self.adapter, TorchAdapter)
        if self._sentinels is not None:
            self._sentinels.remove()
            self._sentinels = None
        if calibration is None:
            return
        count = len(calibration.activation_bounds)
        blocks, width = find_block_list(self.adapter.root, count), find_width(self.adapter.root)
        if blocks is None or width is None:
            what = f"list of {count} blocks" if blocks is None else "hidden_size of a configuration"
            self.note(finding(UNCOVERED, f"no {what} was found, so activations are not watched"))
        elif not fits(calibration, width):
            what = f"channels beyond the {width} of the model, or blocks beyond its {count}"
            self.note(
                finding(UNCOVERED, f"the calibration has {what}: activations are not watched")
            )
        else:
            self._sentinels = Sentinels(
                blocks, calibration.massive_activations, calibration.activation_bounds, width
            )
            self._unseen = 0

    def step(self) -> None:
        """Check what one forward pass pays for, and what the one before it left. See Guard."""
        if _by_canary.get():
            return  # else it would be refused for what it found last, and never find it gone
        if self._sentinels is not None and not self.closed:
            self.read_sentinels()
            self._mind_blindness(self._sentinels)
        super().step()

    def _mind_blindness(self, sentinels: Sentinels) -> None:
        """Say so, once, where forward passes went by that the sentinels did not see."""
        if self._unseen < BLIND_PASSES and not sentinels.seen:
            self._unseen += 1
            if self._unseen == BLIND_PASSES:
                message = (
                    f"sentinels saw nothing of {BLIND_PASSES} forward passes: "
                    "compiled code goes on without hooks that it was not compiled with"
                )
                self.note(finding(UNCOVERED, message))

    def read_sentinels(self) -> bool:
        """Return whether all activations since the last alarm were within their limits.

        Where they were not, WG905 says so, and all weights are checked, once a minute at most.
        """
        if not self._sentinels_alarmed():
            return True
        if time.monotonic() - self._alarmed >= ALARM_PERIOD:
            self._alarmed = time.monotonic()
            self.check()
        return False

    def _sentinels_alarmed(self, *, wait: bool = False) -> bool:
        """Say what left its limits since the last alarm; return whether anything did."""
        sentinels = self._sentinels
        alarms = [] if sentinels is None else sentinels.read(wait=wait)
        if not alarms:
            return False
        with self._gate.check() as let_in:
            if let_in:  # else they are those of weights that are being exchanged
                self.note(sentinel_finding(alarms))
        return let_in

    def check(self) -> Report:
        """Check every block now, and what the last forward pass left. See Guard."""
        self._sentinels_alarmed(wait=True)
        return super().check()

    def _plan_scrubbing(self) -> None:
        """Have blocks checked beside the forward passes, and what the last pass left. See Guard."""
        super()._plan_scrubbing()
        if self.settings.pace is not None:
            read = Background(self.read_sentinels, lambda: SENTINEL_PERIOD, "weightguard-sentinels")
            self._presence.add(read)

    def pin_super_weights(self, manifest: Manifest | None) -> None:
        """Compare the exact bits of the manifest's super weights before each forward pass."""
        if manifest is not None:
            self.pin(super_weight_pins(self.baseline, manifest))

    def _difference(self) -> float | None:
        """Run the canary, never while an update goes on."""
        sentinels = self._sentinels
        known = sentinels is None or sentinels.seen
        with self._gate.check() as let_in:
            canary = self._canary if let_in else None
            token = _by_canary.set(True)
            try:
                difference = None if canary is None else canary.difference()
            finally:
                _by_canary.reset(token)
        if sentinels is not None and not known:
            sentinels.begin_again()  # a canary's pass does not say that they see those of requests
        return difference

    def _seal_again(
        self,
        manifest: Manifest | None,
        names: Mapping[str, str] | None,
        declared: Declared | None,
    ) -> list[Incident]:
        incidents = super()._seal_again(manifest, names, declared)
        if self._canary is not None:
            self._canary.record()
        return incidents

    @contextmanager
    def update(
        self,
        manifest: PathOrManifest | None = None,
        names: Mapping[str, str] | None = None,
        pieces: Mapping[str, Sequence[Piece]] | None = None,
        ranks: Ranks | None = None,
    ) -> Iterator[None]:
        """Declare a change of the live weights. See Guard; a path of a manifest will do.

        ``names``, ``pieces`` and ``ranks`` are as for ``guard``, and stay what they were unless
        they are given. Pieces that are none of the manifest's records are refused with
        WeightguardError before anything changes.
        """
        told = self.told.but(names, pieces, ranks)
        with opened(manifest) as read:
            if read is None:
                declare = None
            else:
                declare = partial(self._declared, told, read)
                declare()
            with self._updating(read, told.names, declare):
                yield
            self.told = told
            self.pin_super_weights(read)
            if self._sentinels is not None:
                self.set_sentinels(None if read is None else read.document.calibration)

    def _declared(self, told: Told, manifest: Manifest) -> Declared:
        assert isinstance(self.adapter, TorchAdapter)
        return told.declaration(dict(self.adapter.named()), manifest)

    def close(self) -> None:
        """Stop guarding; what was found can still be asked for."""
        super().close()
        self.set_sentinels(None)
        if self.golden is not None:
            self.golden.close()
            self.golden = None


def sentinel_finding(alarms: Sequence[Alarm]) -> Finding:
    """Return the finding of one reading of the sentinels; the first block is where it began."""
    layer, channel, value, low, high = alarms[0]
    what = "a channel" if channel is None else f"channel {channel}"
    message = (
        f"after block {layer} {what} reached {value:.4g}, outside of {low:.4g} to {high:.4g}; "
        f"{len(alarms)} limits were left"
    )
    evidence = {"layer": layer, "channel": channel, "value": repr(value), "limits": [low, high]}
    return finding(SENTINEL, message, evidence=evidence)
