"""Options of sessions, made anew for each, providers, and what of them decides how weights run."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import onnxruntime as ort

from weightguard.checkpoint import Checkpoint
from weightguard.errors import WeightguardError
from weightguard_integrations.onnxruntime.entries import DECIDING, OTHER, REFUSED
from weightguard_integrations.onnxruntime.overrides import Overrides, overrides_in, refuse_files

CPU = "CPUExecutionProvider"

Mode: TypeAlias = Literal["sealed", "inplace", "opaque"]

Options: TypeAlias = ort.SessionOptions | Callable[[], ort.SessionOptions] | None
"""Options, or what makes them anew each time it is called."""

DECIDING_ATTRIBUTES = (
    "execution_mode", "execution_order", "graph_optimization_level", "inter_op_num_threads",
    "intra_op_num_threads", "use_deterministic_compute",
)  # fmt: skip
OTHER_ATTRIBUTES = (
    "enable_cpu_mem_arena", "enable_mem_pattern", "enable_mem_reuse", "enable_profiling",
    "log_severity_level", "log_verbosity_level", "logid", "profile_file_prefix",
    "use_per_session_threads",
)  # fmt: skip

_NONE = Overrides()


def required_providers(providers: Sequence[Any] | None) -> list[Any]:
    """Return the providers asked for, each once; raises WeightguardError for one that is missing.

    onnxruntime itself would go on with others.
    """
    if not providers:
        return [CPU]
    if isinstance(providers, str):
        raise WeightguardError(f"providers are a list: give [{providers!r:.100}]")
    available = ort.get_available_providers()
    wanted = {provider_name(provider): provider for provider in reversed(providers)}
    missing = [name for name in wanted if name not in available]
    if missing:
        raise WeightguardError(
            f"onnxruntime has no {missing[0]!r:.100} here: install the package that has it, or "
            f"choose of {', '.join(available)}"
        )
    return list(reversed(wanted.values()))


def provider_name(provider: Any) -> Any:
    """Return the name of a provider, given by it alone or with options."""
    return provider[0] if isinstance(provider, tuple) and provider else provider


def chosen_mode(mode: str | None, providers: Sequence[Any]) -> Mode:
    """Return the mode that was asked for, or the strictest for providers on this system.

    Raises WeightguardError for one that there is not, or not here.
    """
    mappable = [provider_name(p) for p in providers] == [CPU] and sys.platform == "linux"
    if mode is None:
        return "sealed" if mappable else "opaque"
    if mode not in get_args(Mode):
        raise WeightguardError(f"no mode {mode!r:.100}: choose of {', '.join(get_args(Mode))}")
    if mode != "opaque" and not mappable:
        raise WeightguardError(
            f"{mode} mode is for the CPUExecutionProvider on Linux: use mode='opaque' here"
        )
    return cast(Mode, mode)


class Recipe:
    """Makes options for one session after the other, all alike."""

    def __init__(self, given: Options, overrides: Overrides = _NONE):
        """``given`` is copied as far as options can be read; a callable is called instead.

        ``overrides`` are what was read of them for one model. Raises WeightguardError for options
        that a copy would be wrong about, or that lead away from what is verified.
        """
        self._given, self._overrides = given, overrides
        own = self._own()
        if not callable(given) and own.has_providers():
            raise WeightguardError(_CALLABLE)
        refused = [key for key in REFUSED if (entry(own, key) or "0") not in _HARMLESS]
        if own.optimized_model_filepath or refused:
            raise WeightguardError(
                f"options of a guarded session set no {(*refused, 'optimized_model_filepath')[0]}: "
                "what runs is made of the verified files alone"
            )

    def fitted(self, checkpoint: Checkpoint) -> Recipe:
        """Return the recipe for one model: with the dimensions that the options fix.

        Raises WeightguardError where they replace initializers of the model.
        """
        if self._given is None:
            return self
        if callable(self._given):
            refuse_files(self._own(), checkpoint)
        return Recipe(self._given, overrides_in(self._own(), checkpoint))

    def fresh(
        self, entries: Mapping[str, str] | None = None, *, profiled: bool = False
    ) -> ort.SessionOptions:
        """Return options of their own, with further configuration entries.

        Without profiling, unless they are for the session that serves and so ``profiled``.
        """
        options = self._own() if callable(self._given) else self._copied()
        options.enable_profiling &= profiled
        for key, value in (entries or {}).items():
            options.add_session_config_entry(key, value)
        return options

    def _own(self) -> ort.SessionOptions:
        """Return the options that were given, or made."""
        made = self._given() if callable(self._given) else self._given
        if made is None and self._given is None:
            made = ort.SessionOptions()
        if not isinstance(made, ort.SessionOptions):
            raise WeightguardError(
                f"sess_options are onnxruntime.SessionOptions or make them, not {made!r:.100}"
            )
        return made

    def _copied(self) -> ort.SessionOptions:
        options, given = ort.SessionOptions(), self._own()
        for name in (*DECIDING_ATTRIBUTES, *OTHER_ATTRIBUTES):
            if hasattr(given, name):
                setattr(options, name, getattr(given, name))
        for key in (*DECIDING, *OTHER):
            value = entry(given, key)
            if value is not None:
                options.add_session_config_entry(key, value)
        self._overrides.give(options)
        return options

    def described(self) -> dict[str, str]:
        """Return what can be read of the options and decides how weights run."""
        options = self.fresh()
        found = {n: str(getattr(options, n)) for n in DECIDING_ATTRIBUTES if hasattr(options, n)}
        entries = {key: value for key in DECIDING if (value := entry(options, key)) is not None}
        fixed = self._overrides.names + self._overrides.denotations
        return found | entries | {f"free dimension {name}": str(n) for name, n in fixed}


_HARMLESS = ("0", "ONNX")
"""Values of refused entries that ask for nothing."""

_CALLABLE = (
    "these options hold providers that were added to them, which cannot be copied: give "
    "sess_options a callable that makes them"
)


def entry(options: ort.SessionOptions, key: str) -> str | None:
    """Return a configuration entry, None where it is not set."""
    try:
        value: str = options.get_session_config_entry(key)
    except RuntimeError:
        return None
    return value


def processor() -> str:
    """Return what of this machine decides how weights are packed: architecture and features."""
    features = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                features = " ".join(sorted(value.split()))
                break
    return f"{platform.machine()} {features}"


def threads_available() -> int:
    """Return how many processors this process may use: it decides how work is split."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
