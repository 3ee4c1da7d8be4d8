"""GuardedSession: an InferenceSession that is held to the weights it was loaded with."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import onnxruntime as ort

from weightguard.audit import ManifestLike, opened_manifest
from weightguard.errors import WeightguardError
from weightguard.finding import Report
from weightguard.guard import Guard, Incident, Settings, Status
from weightguard_integrations.onnxruntime import canary as canaries
from weightguard_integrations.onnxruntime.arguments import model_path, refuse, settings_of
from weightguard_integrations.onnxruntime.cache import Cache, Entry, StaleEntry, default_folder
from weightguard_integrations.onnxruntime.canary import Feed, Outputs
from weightguard_integrations.onnxruntime.children import RUNTIMES
from weightguard_integrations.onnxruntime.coverage import SessionCoverage, session_coverage
from weightguard_integrations.onnxruntime.loading import (
    Loaded,
    Wanted,
    load_plainly,
    load_sealed,
)
from weightguard_integrations.onnxruntime.memory import Memory, SessionAdapter
from weightguard_integrations.onnxruntime.options import (
    Mode,
    Options,
    Recipe,
    chosen_mode,
    provider_name,
    required_providers,
)
from weightguard_integrations.onnxruntime.runs import CheckedRuns
from weightguard_integrations.onnxruntime.sealed import SealedRuntime
from weightguard_integrations.onnxruntime.source import RUNTIME_ERRORS
from weightguard_integrations.onnxruntime.watch import CanaryWatch

CANARY_SHARE = 0.01
"""Share of the time that canary runs may take."""

SCRUB = "25MB/s"
"""Bytes a second that are checked in the background: less than 1 % of one core."""


class GuardedSession(CheckedRuns):
    """An InferenceSession whose weights are verified at load and while it serves.

    ``mode``: ``sealed`` (CPU, Linux) runs at full speed from packed weights that are watched where
    they are mapped; ``inplace`` gives the runtime buffers that are watched; ``opaque`` verifies
    the files and relies on the canary. None is sealed where that is possible, else opaque.
    ``adapter`` is what the guard reads and repairs the live weights through.
    """

    def __init__(  # noqa: PLR0913 - onnxruntime's own, and what is guarded how
        self,
        path_or_bytes: str | os.PathLike[str],
        sess_options: Options = None,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        *,
        manifest: ManifestLike | None = None,
        mode: Mode | None = None,
        scrub: str | int | None = SCRUB,
        step_budget: str | int = 0,
        settings: Settings | None = None,
        canary: Feed | Sequence[Feed] | None = None,
        canary_share: float = CANARY_SHARE,
        cache: str | os.PathLike[str] | Cache | None = None,
        variant: str = "",
        **refused: Any,
    ):
        """Load the model at a path, verified against ``manifest`` where there is one.

        ``scrub`` is the rate of the background thread that checks the weights, None for none;
        ``step_budget`` is checked before each run. Both give way to what ``settings`` say of it.
        ``canary`` are inputs to be run now and then, for ``canary_share`` of the time; without it
        they are made up from the model's signature. ``cache`` is the folder of sealed models, or a
        Cache of a size. ``variant`` names what of the options cannot be read from them: custom
        operators, entries of a caller's own.

        Raises IntegrityError where the files are not what the manifest says, CheckpointError where
        they cannot be read, ManifestError, and WeightguardError where the session cannot be
        guarded: then there is none.
        """
        self._loaded: Loaded | None = None
        path = model_path(path_or_bytes)
        refuse(refused, canary_share)
        self._sealed: SealedRuntime | None = None
        self._closed = False
        self._share = canary_share
        self._requested = required_providers(providers)
        self._asked_options = provider_options
        self.adapter = SessionAdapter(Memory(None))
        self._recipe = Recipe(sess_options)
        self.mode = chosen_mode(mode, self._requested)
        with opened_manifest(manifest) as recorded:
            wanted = Wanted(
                path, recorded, self._recipe,
                None if canary is None else canaries.given(canary),
                settings_of(settings, path, self.mode, scrub, step_budget), variant,
            )  # fmt: skip
            if self.mode == "sealed":
                store = (
                    cache if isinstance(cache, Cache) else Cache(Path(cache or default_folder()))
                )
                self._loaded = load_sealed(self, self.adapter, wanted, store)
            else:
                self._loaded = load_plainly(self, self.adapter, wanted, self.mode)
        self.guard.start()

    # loading: see Startable

    def start(self, graph: bytes, options: ort.SessionOptions | None) -> object:
        """Make the runtime's session of ``graph``, and return it."""
        super().__init__(graph, options, self._requested, self._asked_options, enable_fallback=0)
        return self._sess

    def start_sealed(self, sealed: SealedRuntime) -> object:
        """Make the runtime's session of a sealed model, and return it."""
        self._sealed = sealed
        return self.start(sealed.model.graph, None)

    def watched(self, feeds: Sequence[Feed], outputs: tuple[str, ...]) -> CanaryWatch:
        """Return the canary of this session, which does not keep it."""
        method = weakref.WeakMethod(self.run_plainly)

        def run(feed: Feed, options: ort.RunOptions) -> Outputs:
            bound = method()
            if bound is None:
                raise WeightguardError("the session of this canary is gone")
            return bound(feed, options)

        return CanaryWatch(run, feeds, outputs, self._share)

    def get_session_options(self) -> ort.SessionOptions:
        """Return the options as they were given: a sealed graph is loaded with others."""
        return self._recipe.fresh(profiled=True)

    def _create_inference_session(self, providers: Any, options: Any, disabled: Any = None) -> None:
        """Create the runtime's session, now and whenever it is rebuilt. Overrides onnxruntime's."""
        if self._sealed is None:
            super()._create_inference_session(providers, options, disabled)
        else:
            with self._sealed.making() as own:
                self._sess_options = own
                super()._create_inference_session(providers, options, disabled)
        RUNTIMES.add(self._sess)

    # running

    def checked(self, run: Callable[..., Any], *arguments: Any) -> Any:
        """Do what is due of checks, then run; a kernel that fails has the weights checked."""
        loaded = self._require_loaded()
        self.adapter.before_run()
        if loaded.watch.run_if_due(loaded.guard):
            self.adapter.before_run()  # what a policy says of it is for this run already
        try:
            return run(*arguments)
        except RUNTIME_ERRORS as error:
            loaded.watch.alarm(loaded.guard, f"{type(error).__name__}: {error}")
            raise

    def suspect(self) -> Callable[[str], None]:
        """Return what takes note of a run that failed in a thread of the runtime's own."""
        return self._require_loaded().watch.suspect

    def set_providers(
        self, providers: Sequence[Any] | None = None, provider_options: Any = None
    ) -> None:
        """Build the runtime's session again, with the providers that it has; see ``rebuild``."""
        wanted = [provider_name(provider) for provider in required_providers(providers)]
        if wanted != [provider_name(provider) for provider in self._requested]:
            raise WeightguardError(
                "a guarded session keeps the providers it was verified with: make a new one"
            )
        self.rebuild()

    def rebuild(self) -> None:
        """Build the runtime's session again from the same sealed weights; runs go on meanwhile.

        Raises WeightguardError for a session that is not sealed: what it was verified from is not
        kept.
        """
        loaded = self._require_loaded()
        if loaded.sealed is None:
            raise WeightguardError(f"a session in {self.mode} mode is not rebuilt: make a new one")
        before = dict(self.__dict__)
        try:
            self._create_inference_session(self._requested, self._asked_options)
            self.adapter.memory = loaded.sealed.proved(self._sess, loaded.watch.deviation)
        except (StaleEntry, *RUNTIME_ERRORS) as error:
            self.__dict__.update(before)  # runs go on with the session that there was
            raise WeightguardError(
                f"the sealed model changed since it was loaded: {error!s:.500}. Make a new session"
            ) from error

    def run_canary(self) -> bool:
        """Run the canary now; return whether its outputs are, bit by bit, those it had.

        Where they are not, all weights are checked at once, and it is run again.
        """
        loaded = self._require_loaded()
        return loaded.watch.run(loaded.guard)

    # asking

    def check(self) -> Report:
        """Check every watched byte now, then the canary, and report what is open.

        The bytes come first: what they show is put right before anything runs on it.
        """
        report = self.guard.check()
        return report if self.run_canary() and not report.findings else self.guard.check()

    def scrub(self, nbytes: int, seconds: float | None = None) -> int:
        """Check the bytes that come next; return how many were verified. See Guard."""
        return self.guard.scrub(nbytes, seconds)

    @property
    def guard(self) -> Guard:
        """The guard."""
        if self._loaded is None:
            raise WeightguardError(_NOT_LOADED)
        return self._loaded.guard

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """What was found, oldest first."""
        return self.guard.incidents

    def status(self) -> Status:
        """Return where the guard stands."""
        return self.guard.status()

    @property
    def chain(self) -> Entry | None:
        """What was sealed, of what, and how that was shown; None in other modes."""
        return None if self._sealed is None else self._sealed.model.entry

    def coverage(self) -> SessionCoverage:
        """Return how many live bytes are watched, in what form, and how many are not."""
        return session_coverage(self.mode, self.adapter.memory, self.chain, self.guard.coverage())

    # ending

    def close(self) -> None:
        """Stop guarding: the session runs no more; what was found can still be asked for."""
        if self._loaded is None or self._closed:
            return
        self._closed = True
        self._loaded.guard.close()
        if self._loaded.buffer is not None:
            self._loaded.buffer.close()

    def __del__(self) -> None:
        """Give the runtime's memory back at once: what guarded it may be garbage that waits."""
        self.close()
        if self._loaded is not None:
            self.adapter.memory = Memory(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise TypeError("a guarded session holds on to live memory: make one in each process")

    def _require_loaded(self) -> Loaded:
        if self._loaded is None:
            raise WeightguardError(_NOT_LOADED)
        if self._closed:
            raise WeightguardError("this session is closed: make a new one")
        return self._loaded


_NOT_LOADED = "this session was not loaded: make a new one"
