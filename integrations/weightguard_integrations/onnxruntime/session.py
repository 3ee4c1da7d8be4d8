"""GuardedSession: an InferenceSession that is held to the weights it was loaded with."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import msgspec
import onnx
import onnxruntime as ort
import onnxruntime.capi.onnxruntime_pybind11_state as states

from weightguard.audit import ManifestLike
from weightguard.catalogue import Severity
from weightguard.checkpoint import Checkpoint
from weightguard.errors import WeightguardError
from weightguard.finding import Report, finding
from weightguard.guard import Gap, Guard, Incident, Settings, Status
from weightguard.guard.coverage import LiveCoverage
from weightguard.guard.incident import CANARY, RUNTIME_EXCEPTION
from weightguard.guard.ledger import Place
from weightguard.manifest import Manifest
from weightguard_integrations.onnxruntime import canary as canaries
from weightguard_integrations.onnxruntime import inplace, sealed
from weightguard_integrations.onnxruntime.cache import (
    Cache,
    Entry,
    StaleEntry,
    default_folder,
    key_of,
)
from weightguard_integrations.onnxruntime.canary import Feed
from weightguard_integrations.onnxruntime.mappings import mappings_of
from weightguard_integrations.onnxruntime.memory import Memory, SessionAdapter
from weightguard_integrations.onnxruntime.options import (
    CPU,
    Options,
    Recipe,
    processor,
    threads_available,
)
from weightguard_integrations.onnxruntime.source import (
    digests_of,
    give_external_data,
    graph_bytes,
    identity_of,
    open_model,
    require_sound,
)

Mode: TypeAlias = Literal["sealed", "inplace", "opaque"]

CANARY_SHARE = 0.01
"""Share of the time that canary runs may take."""

CHECK_AFTER_EXCEPTION = 60.0
"""Seconds between full checks because runs failed: a client's bad input must not cost more."""

RUNTIME_ERRORS = (
    states.EPFail, states.Fail, states.RuntimeException, states.InvalidArgument,
    states.InvalidGraph, states.InvalidProtobuf, states.NoSuchFile, states.NotImplemented,
)  # fmt: skip
"""What onnxruntime raises."""

_RUN_FAILED = "Non-zero status code returned while running"
_WHOLE = "all weights"


class SessionCoverage(msgspec.Struct, frozen=True):
    """Live bytes of a session by where they are, next to what the guard says of them.

    ``live`` weights are watched as they are in the model, ``packed`` ones in the form that a kernel
    made of them; ``folded`` weights of the model have become part of others, or of nothing;
    ``unreachable`` bytes are watched by the canary alone.
    """

    mode: str
    live: int
    packed: int
    folded: int
    unreachable: int
    guard: LiveCoverage


class GuardedSession(ort.InferenceSession):  # type: ignore[misc]
    """An InferenceSession whose weights are verified at load and while it serves.

    ``mode``: ``sealed`` (CPU, Linux) runs at full speed from packed weights that are watched where
    they are mapped; ``inplace`` gives the runtime buffers that are watched; ``opaque`` verifies
    the files and relies on the canary. None is sealed where that is possible, else opaque.
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
        self._guard: Guard | None = None
        self._stack = ExitStack()
        self._generation = 0
        self._memory = Memory(None)
        self.adapter = SessionAdapter(lambda: self._memory)
        self._recipe = Recipe(sess_options)
        self._requested = _providers(providers)
        self.mode: Mode = mode or default_mode(self._requested)
        self._canary_lock = threading.Lock()
        self._canary_share, self._canary_due = canary_share, 0.0
        self._last_alarm = -CHECK_AFTER_EXCEPTION
        self._feeds: tuple[Feed, ...] = ()
        self._outputs: tuple[str, ...] = ()
        self._place: sealed.SealedModel | None = None
        self._cache: Cache | None = None
        self._buffer: inplace.Buffer | None = None
        self._variant = variant
        feeds = None if canary is None else canaries.given(canary)
        try:
            with _read(manifest) as recorded:
                if self.mode == "sealed":
                    self._init_sealed(path, recorded, settings, feeds, cache)
                else:
                    self._init_direct(path, recorded, settings, feeds, providers, provider_options)
        except BaseException:
            self._stack.close()
            raise
        assert self._guard is not None
        self._guard.start()

    # loading

    def _init_sealed(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest | None,
        settings: Settings | None,
        feeds: tuple[Feed, ...] | None,
        folder: str | os.PathLike[str] | None,
    ) -> None:
        if self._requested != [CPU] or sys.platform != "linux":
            raise WeightguardError(
                "sealed mode is for the CPUExecutionProvider on Linux: use mode='opaque' here"
            )
        self._cache = Cache(default_folder() if folder is None else Path(folder))
        with open_model(path, private=False) as checkpoint:
            digests = digests_of(checkpoint)
        weights = None if manifest is None else manifest.document.weights
        parts = {
            "model": identity_of(digests),
            "weights": weights,
            "files": {} if manifest is None else manifest.document.files,
            "runtime": ort.__version__,
            "processor": processor(),
            "threads": threads_available(),
            "options": self._recipe.described(),
            "canary": sealed.feeds_identity(feeds),
            "variant": self._variant,
        }
        key = key_of(parts)
        order = sealed.Order(key, identity_of(digests), weights, self._recipe.described(), feeds)

        def build(work: Path) -> None:
            with open_model(path, private=True) as checkpoint:
                if identity_of(digests_of(checkpoint)) != order.model:
                    raise WeightguardError("the model's files changed while they were read")
                require_sound(checkpoint, manifest)
                sealed.seal_model(checkpoint, self._recipe, order, work)

        def load(place: Path) -> None:
            self._place = sealed.SealedModel.read(place, key)
            try:
                super(GuardedSession, self).__init__(
                    self._place.graph, providers=[CPU], enable_fallback=0
                )
            except RUNTIME_ERRORS as error:
                raise StaleEntry(f"onnxruntime cannot load it: {error!s:.300}") from error
            self._prove_sealed(manifest, settings)

        try:
            self._cache.obtain(key, build, load)
        except StaleEntry as error:
            raise WeightguardError(
                f"the sealed model was damaged as soon as it was written: {error}. Check the disk "
                "and the memory of this machine"
            ) from error

    def _prove_sealed(self, manifest: Manifest | None, settings: Settings | None) -> None:
        """Show that what is mapped is what was sealed and what runs, and guard it."""
        assert self._place is not None
        model = self._place
        self._feeds, self._outputs = model.feeds, model.entry.outputs
        sealed.verify_mapped(model, self._memory, self.adapter.read)
        answers: list[tuple[str, ...]] = []
        self._memory = sealed.prove(
            self._memory, self._mappings, lambda: answers.append(self._answers())
        )
        if answers[0] != self._outputs:
            raise StaleEntry(
                "the sealed model answers the canary otherwise than when it was sealed"
            )
        guard = Guard(self.adapter, manifest, _named(settings), golden=sealed.SealedFile(model))
        # what became the baseline is what was sealed, unless it changed in between
        sealed.verify_mapped(model, self._memory, self.adapter.read)
        self._guard = guard

    def _init_direct(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest | None,
        settings: Settings | None,
        feeds: tuple[Feed, ...] | None,
        providers: Sequence[Any] | None,
        provider_options: Sequence[dict[Any, Any]] | None,
    ) -> None:
        """Load from private copies of the files, verified first."""
        with open_model(path, private=True) as checkpoint:
            require_sound(checkpoint, manifest)
            graph = graph_bytes(checkpoint)
            model = onnx.ModelProto.FromString(graph)
            options = self._recipe.fresh()
            held = give_external_data(checkpoint, graph, options)
            if self.mode == "inplace":
                self._place_buffer(checkpoint, model, options)
            else:
                gap = Gap(_WHOLE, "unreachable", checkpoint.nbytes, "opaque mode: by canary alone")
                self._memory = Memory(None, {}, (gap,))
            super().__init__(
                graph, options, providers or [CPU], provider_options, enable_fallback=0
            )
            del held
            self._choose_canary(feeds, model)
            if self._buffer is not None:
                memory = self._buffer.memory(checkpoint, self._sess, self._generation)
                self._memory = sealed.prove(memory, [self._buffer.mapping()], self._answers)
            attesting = manifest if self.mode == "inplace" else None
            self._guard = Guard(self.adapter, attesting, _named(settings), golden=self._buffer)

    def _place_buffer(
        self, checkpoint: Checkpoint, model: onnx.ModelProto, options: ort.SessionOptions
    ) -> None:
        if sys.platform != "linux":
            raise WeightguardError("inplace mode is for Linux: use mode='opaque' here")
        self._buffer = inplace.Buffer(checkpoint, model)
        self._stack.callback(self._buffer.close)
        self._values = dict(self._buffer.values())
        for name, value in self._values.items():
            options.add_initializer(name, value)

    def _choose_canary(self, feeds: tuple[Feed, ...] | None, model: onnx.ModelProto) -> None:
        run = self._run_plainly
        self._feeds = feeds or canaries.chosen(run, self.get_inputs(), model)
        self._outputs = canaries.stable(run, self._feeds)

    def _create_inference_session(self, providers: Any, options: Any, disabled: Any = None) -> None:
        """Create the runtime's session, now and whenever it is rebuilt. Overrides onnxruntime's."""
        if self._place is None:
            super()._create_inference_session(providers, options, disabled)
        else:
            assert self._cache is not None
            model = self._place
            with self._cache.own_name(model.place, copied=model.entry.nested) as folder:
                self._sess_options = sealed.sealed_options(self._recipe, folder)
                super()._create_inference_session([CPU], None, disabled)
                self._mappings = mappings_of(folder / sealed.DATA_NAME)
        self._generation += 1
        if self._place is not None:
            self._memory = sealed.locate(self._place, self._mappings, self._sess, self._generation)
            if self._guard is not None:
                self._prove_rebuilt(self._place)

    def _prove_rebuilt(self, model: sealed.SealedModel) -> None:
        try:
            sealed.verify_mapped(model, self._memory, self.adapter.read)
        except StaleEntry as error:
            raise WeightguardError(
                f"the sealed model changed since it was loaded: {error}. Make a new session"
            ) from error
        self._memory = sealed.prove(self._memory, self._mappings, self._answers)

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
        if _providers(providers) != self._requested:
            raise WeightguardError(
                "a guarded session keeps the providers it was verified with: make a new one"
            )
        self.rebuild()

    def rebuild(self) -> None:
        """Build the runtime's session again from the same sealed weights; runs go on meanwhile.

        Raises WeightguardError for a session that is not sealed: what it was verified from is not
        kept.
        """
        if self._place is None:
            raise WeightguardError(f"a session in {self.mode} mode is not rebuilt: make a new one")
        self._create_inference_session([CPU], None)

    def _guarded(self, run: Callable[..., Any], *arguments: Any) -> Any:
        self.adapter.before_run()
        if self._canary_share and time.monotonic() >= self._canary_due:
            self.run_canary()
        try:
            return run(*arguments)
        except RUNTIME_ERRORS as error:
            if _RUN_FAILED in str(error):
                self._alarm(error)
            raise

    def _alarm(self, error: Exception) -> None:
        """Take a kernel that failed as a sign of damage, unless everything else is sound."""
        sound = self.run_canary()
        if time.monotonic() - self._last_alarm >= CHECK_AFTER_EXCEPTION:
            self._last_alarm = time.monotonic()
            sound = not self.check().findings and sound
        severity = Severity.INFO if sound else Severity.ERROR
        message = f"{type(error).__name__}: {error!s:.300}" + (_SOUND if sound else "")
        self._required().report_incident(
            Place("session", aspect="run"), finding(RUNTIME_EXCEPTION, message, severity=severity)
        )

    # the canary

    def run_canary(self) -> bool:
        """Run the canary now; return whether its outputs are, bit by bit, those it had.

        Where they are not, all weights are checked at once, and it is run again.
        """
        if not self._canary_lock.acquire(blocking=False):
            return True
        try:
            began = time.monotonic()
            what = self._canary_deviation()
            ended = time.monotonic()
            if self._canary_share:
                self._canary_due = ended + (ended - began) / self._canary_share
            return self._judge_canary(what)
        finally:
            self._canary_lock.release()

    def _judge_canary(self, what: str | None) -> bool:
        guard, place = self._required(), Place("session", aspect="canary")
        if what is not None:
            guard.report_incident(place, finding(CANARY, what))
            guard.check()
            what = self._canary_deviation()
        if what is None:
            guard.report_sound(place)
        return what is None

    def _canary_deviation(self) -> str | None:
        """Return in words how the canary's outputs differ, None where they do not."""
        try:
            answers = self._answers()
        except RUNTIME_ERRORS as error:
            return f"the canary's run failed: {error!s:.300}"
        if answers == self._outputs:
            return None
        wrong = sum(a != b for a, b in zip(answers, self._outputs, strict=True))
        return f"{wrong} of {len(answers)} runs have other outputs, bit by bit, than at load"

    def _answers(self) -> tuple[str, ...]:
        return canaries.recorded(self._run_plainly, self._feeds)

    def _run_plainly(self, feed: Feed) -> Any:
        """Run without what comes before a run."""
        return super().run(None, feed)

    # asking

    def check(self) -> Report:
        """Check the canary and every watched byte now, and report what is open."""
        self.run_canary()
        return self._required().check()

    def scrub(self, nbytes: int, seconds: float | None = None) -> int:
        """Check the bytes that come next; return how many were verified. See Guard."""
        return self._required().scrub(nbytes, seconds)

    @property
    def guard(self) -> Guard:
        """The guard."""
        return self._required()

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """What was found, oldest first."""
        return self._required().incidents

    def status(self) -> Status:
        """Return where the guard stands."""
        return self._required().status()

    @property
    def chain(self) -> Entry | None:
        """What was sealed, of what, and how that was shown; None in other modes."""
        return None if self._place is None else self._place.entry

    def coverage(self) -> SessionCoverage:
        """Return how many live bytes are watched, in what form, and how many are not."""
        memory, guard = self._memory, self._required().coverage()
        packed = {e.name for e in self.chain.extents if e.packed} if self.chain else set()
        sizes = {name: region.tensor.nbytes for name, region in memory.regions.items()}
        return SessionCoverage(
            mode=self.mode,
            live=sum(n for name, n in sizes.items() if name not in packed),
            packed=sum(n for name, n in sizes.items() if name in packed),
            folded=self.chain.folded[1] if self.chain else 0,
            unreachable=guard.unreachable + guard.copied,
            guard=guard,
        )

    def close(self) -> None:
        """Stop guarding; the session can still run, unguarded."""
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

    def __reduce__(self) -> str:
        raise TypeError("a guarded session holds on to live memory: make one in each process")

    def _required(self) -> Guard:
        if self._guard is None:
            raise WeightguardError("this session was not loaded")
        return self._guard


def default_mode(providers: Sequence[Any]) -> Mode:
    """Return the mode for providers on this system."""
    return "sealed" if list(providers) == [CPU] and sys.platform == "linux" else "opaque"


def _providers(providers: Sequence[Any] | None) -> list[Any]:
    """Return the providers asked for; raises WeightguardError for one that is missing.

    onnxruntime itself would go on with others.
    """
    if not providers:
        return [CPU]
    available = ort.get_available_providers()
    names = [entry[0] if isinstance(entry, tuple) else entry for entry in providers]
    missing = [name for name in names if name not in available]
    if missing:
        raise WeightguardError(
            f"onnxruntime has no {missing[0]!r:.100} here: install the package that has it, or "
            f"choose of {', '.join(available)}"
        )
    return list(providers)


def _named(settings: Settings | None) -> Settings:
    return settings or Settings(name="onnxruntime session")


@contextmanager
def _read(manifest: ManifestLike | None) -> Iterator[Manifest | None]:
    if manifest is None or isinstance(manifest, Manifest):
        yield manifest
        return
    with Manifest.read(manifest) as opened:
        yield opened


_SOUND = "; the weights and the canary are sound, so the input may be to blame"
