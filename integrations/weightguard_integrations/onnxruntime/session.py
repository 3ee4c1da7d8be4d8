"""GuardedSession: an InferenceSession that is held to the weights it was loaded with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import onnx
import onnxruntime as ort

from weightguard.audit import ManifestLike, opened_manifest
from weightguard.checkpoint import Checkpoint
from weightguard.errors import WeightguardError
from weightguard.finding import Report
from weightguard.guard import Gap, Guard, Incident, Settings, Status, forks
from weightguard.guard.ledger import Place
from weightguard.manifest import Manifest
from weightguard_integrations.onnxruntime import canary as canaries
from weightguard_integrations.onnxruntime import sealing
from weightguard_integrations.onnxruntime.cache import Cache, Entry, StaleEntry, default_folder
from weightguard_integrations.onnxruntime.canary import Feed
from weightguard_integrations.onnxruntime.coverage import SessionCoverage, session_coverage
from weightguard_integrations.onnxruntime.inplace import Buffer
from weightguard_integrations.onnxruntime.memory import Memory, SessionAdapter
from weightguard_integrations.onnxruntime.options import (
    CPU,
    Mode,
    Options,
    Recipe,
    chosen_mode,
    required_providers,
)
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
    readable_failure,
    require_sound,
)
from weightguard_integrations.onnxruntime.watch import CanaryWatch

CANARY_SHARE = 0.01
"""Share of the time that canary runs may take."""

_KEPT_IN_CHILD: list[object] = []


class GuardedSession(ort.InferenceSession):  # type: ignore[misc]
    """An InferenceSession whose weights are verified at load and while it serves.

    ``mode``: ``sealed`` (CPU, Linux) runs at full speed from packed weights that are watched where
    they are mapped; ``inplace`` gives the runtime buffers that are watched; ``opaque`` verifies
    the files and relies on the canary. None is sealed where that is possible, else opaque.
    ``adapter`` is what the guard reads and repairs the live weights through.
    """

    def __init__(  # noqa: PLR0913 - onnxruntime's own, and what is guarded how
        self,
        path: str | os.PathLike[str],
        sess_options: Options = None,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        *,
        manifest: ManifestLike | None = None,
        mode: Mode | None = None,
        settings: Settings | None = None,
        canary: Feed | Sequence[Feed] | None = None,
        canary_share: float = CANARY_SHARE,
        cache: str | os.PathLike[str] | None = None,
        variant: str = "",
    ):
        """Load the model at ``path``, verified against ``manifest`` where there is one.

        ``canary`` are inputs to be run now and then; without it they are made up from the model's
        signature. ``cache`` is the folder of sealed models. ``variant`` names what of the options
        cannot be read from them: custom operators, free dimension overrides.

        Raises IntegrityError where the files are not what the manifest says, CheckpointError where
        they cannot be read, ManifestError, and WeightguardError where the session cannot be
        guarded: then there is none.
        """
        if isinstance(path, bytes):
            raise WeightguardError("give a path: the files are verified, not bytes of a graph")
        forks.watch(self)
        self._guard: Guard | None = None
        self._watch: CanaryWatch | None = None
        self._sealed: SealedRuntime | None = None
        self._closed = False
        self._stack = ExitStack()
        self._memory = Memory(None)
        self.adapter = SessionAdapter(lambda: self._memory)
        self._recipe = Recipe(sess_options)
        self._requested = required_providers(providers)
        self.mode = chosen_mode(mode, self._requested)
        self._share = canary_share
        self._settings = settings or Settings(name=f"onnxruntime {os.path.basename(path)}")  # noqa: PTH119
        feeds = None if canary is None else canaries.given(canary)
        with ExitStack() as failing, opened_manifest(manifest) as recorded:
            failing.push(self._stack)
            if self.mode == "sealed":
                place = default_folder() if cache is None else Path(cache)
                self._load_sealed(path, recorded, feeds, Cache(place), variant)
            else:
                self._load_plainly(path, recorded, feeds, provider_options)
            failing.pop_all()
        self.guard.start()

    # loading

    def _load_sealed(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest | None,
        feeds: tuple[Feed, ...] | None,
        cache: Cache,
        variant: str,
    ) -> None:
        order = sealing.order_of(path, manifest, self._recipe, feeds, variant)

        def build(work: Path) -> None:
            sealing.fill(order, path, manifest, self._recipe, work)

        def load(place: Path) -> None:
            model = SealedModel.read(place, order.key)
            self._sealed = SealedRuntime(model, cache, self._recipe)
            try:
                super(GuardedSession, self).__init__(model.graph, enable_fallback=0)
            except RUNTIME_ERRORS as error:
                raise StaleEntry(f"onnxruntime cannot load it: {error!s:.300}") from error
            self._guard_sealed(self._sealed, manifest)

        try:
            cache.obtain(order.key, build, load)
        except StaleEntry as error:
            raise WeightguardError(
                f"the sealed model was damaged as soon as it was written: {error}. Check the disk "
                "and the memory of this machine"
            ) from error
        self._note_graph(order.graph, manifest)

    def _guard_sealed(self, runtime: SealedRuntime, manifest: Manifest | None) -> None:
        """Show that what is mapped is what was sealed and what runs, and guard it."""
        model = runtime.model
        watch = self._watched(model.feeds, model.entry.outputs)
        deviations: list[str | None] = []
        self._memory = runtime.proved(self._sess, lambda: deviations.append(watch.deviation()))
        if deviations != [None]:
            raise StaleEntry(f"its canary deviates: {deviations[0]}")
        guard = Guard(self.adapter, manifest, self._settings, golden=SealedFile(model))
        # what became the baseline is what was sealed, unless it changed in between
        runtime.verify(self._memory)
        self._guard = guard

    def _load_plainly(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest | None,
        feeds: tuple[Feed, ...] | None,
        provider_options: Sequence[dict[Any, Any]] | None,
    ) -> None:
        """Load from private copies of the files, verified first."""
        with open_model(path, private=True) as checkpoint:
            require_sound(checkpoint, manifest)
            graph = graph_bytes(checkpoint)
            model = onnx.ModelProto.FromString(graph)
            options = self._recipe.fresh()
            buffer = self._buffer(checkpoint, model) if self.mode == "inplace" else None
            if buffer is not None:
                buffer.give(options)
            with given_external_data(checkpoint, options), readable_failure():
                super().__init__(
                    graph, options, self._requested, provider_options, enable_fallback=0
                )
            run = self._run_plainly
            chosen = feeds or canaries.chosen(run, self.get_inputs(), model)
            watch = self._watched(chosen, canaries.stable(run, chosen))
            if buffer is None:
                self._memory = Memory(None, {}, (_opaque(checkpoint),))
            else:
                memory = buffer.memory(checkpoint, self._sess)
                self._memory = prove(memory, [buffer.mapping()], watch.deviation)
            # an opaque session has no live tensors that a manifest could be compared with
            attesting = manifest if buffer is not None else None
            self._guard = Guard(self.adapter, attesting, self._settings, golden=buffer)
            self._note_graph(hashlib.sha256(graph).hexdigest(), manifest)

    def _buffer(self, checkpoint: Checkpoint, model: onnx.ModelProto) -> Buffer:
        buffer = Buffer(checkpoint, model)
        self._stack.callback(buffer.close)
        return buffer

    def _watched(self, feeds: Sequence[Feed], outputs: tuple[str, ...]) -> CanaryWatch:
        self._watch = CanaryWatch(self._run_plainly, feeds, outputs, self._share)
        return self._watch

    def _note_graph(self, graph_sha256: str, manifest: Manifest | None) -> None:
        doubt = graph_doubt(graph_sha256, manifest)
        if doubt is not None:
            self.guard.report_incident(Place("graph", aspect="attestation"), doubt)

    def _create_inference_session(self, providers: Any, options: Any, disabled: Any = None) -> None:
        """Create the runtime's session, now and whenever it is rebuilt. Overrides onnxruntime's."""
        if self._sealed is None:
            super()._create_inference_session(providers, options, disabled)
            return
        with self._sealed.making() as own:
            self._sess_options = own
            super()._create_inference_session([CPU], None, disabled)

    # running

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """See InferenceSession; what is due of checks comes first."""
        return self._guarded(super().run, output_names, input_feed, run_options)

    def run_async(
        self,
        output_names: Any,
        input_feed: Any,
        callback: Any,
        user_data: Any,
        run_options: Any = None,
    ) -> Any:
        """See InferenceSession."""
        arguments = (output_names, input_feed, callback, user_data, run_options)
        return self._guarded(super().run_async, *arguments)

    def run_with_ort_values(
        self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None
    ) -> Any:
        """See InferenceSession."""
        arguments = (output_names, input_dict_ort_values, run_options)
        return self._guarded(super().run_with_ort_values, *arguments)

    def run_with_iobinding(self, iobinding: Any, run_options: Any = None) -> Any:
        """See InferenceSession."""
        return self._guarded(super().run_with_iobinding, iobinding, run_options)

    def run_with_ortvaluevector(self, *arguments: Any) -> Any:
        """See InferenceSession."""
        return self._guarded(super().run_with_ortvaluevector, *arguments)

    def set_providers(
        self, providers: Sequence[Any] | None = None, provider_options: Any = None
    ) -> None:
        """Build the runtime's session again, with the providers that it has; see ``rebuild``."""
        if required_providers(providers) != self._requested:
            raise WeightguardError(
                "a guarded session keeps the providers it was verified with: make a new one"
            )
        self.rebuild()

    def rebuild(self) -> None:
        """Build the runtime's session again from the same sealed weights; runs go on meanwhile.

        Raises WeightguardError for a session that is not sealed: what it was verified from is not
        kept.
        """
        if self._sealed is None:
            raise WeightguardError(f"a session in {self.mode} mode is not rebuilt: make a new one")
        _, watch = self._loaded()
        try:
            self._create_inference_session([CPU], None)
            self._memory = self._sealed.proved(self._sess, watch.deviation)
        except StaleEntry as error:
            raise WeightguardError(
                f"the sealed model changed since it was loaded: {error}. Make a new session"
            ) from error

    def _guarded(self, run: Callable[..., Any], *arguments: Any) -> Any:
        if self._closed:
            return run(*arguments)
        guard, watch = self._loaded()
        watch.run_if_due(guard)
        self.adapter.before_run()
        try:
            return run(*arguments)
        except RUNTIME_ERRORS as error:
            watch.alarm(guard, error)
            raise

    def run_canary(self) -> bool:
        """Run the canary now; return whether its outputs are, bit by bit, those it had.

        Where they are not, all weights are checked at once, and it is run again.
        """
        guard, watch = self._loaded()
        return watch.run(guard)

    def _run_plainly(self, feed: Feed) -> Any:
        """Run without what comes before a run."""
        return super().run(None, feed)

    # asking

    def check(self) -> Report:
        """Check the canary and every watched byte now, and report what is open."""
        self.run_canary()
        return self.guard.check()

    def scrub(self, nbytes: int, seconds: float | None = None) -> int:
        """Check the bytes that come next; return how many were verified. See Guard."""
        return self.guard.scrub(nbytes, seconds)

    @property
    def guard(self) -> Guard:
        """The guard."""
        return self._loaded()[0]

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
        return session_coverage(self.mode, self._memory, self.chain, self.guard.coverage())

    def close(self) -> None:
        """Stop guarding; the session can still run, unguarded."""
        self._closed = True
        if self._guard is not None:
            self._guard.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def after_fork(self) -> None:
        """In a forked child: keep the runtime's session, whose end would wait for lost threads."""
        _KEPT_IN_CHILD.append(getattr(self, "_sess", None))

    def __reduce__(self) -> str:
        raise TypeError("a guarded session holds on to live memory: make one in each process")

    def _loaded(self) -> tuple[Guard, CanaryWatch]:
        if self._guard is None or self._watch is None:
            raise WeightguardError("this session was not loaded: make a new one")
        return self._guard, self._watch


def _opaque(checkpoint: Checkpoint) -> Gap:
    return Gap("all weights", "unreachable", checkpoint.nbytes, "an opaque session: see the canary")
