"""Options of sessions, made anew for each, providers, and what of them decides how weights run."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import onnxruntime as ort

from weightguard.errors import WeightguardError

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

DECIDING = (
    "mlas.disable_kleidiai", "mlas.enable_gemm_fastmath_arm64_bfloat16", "mlas.use_lut_gemm",
    "optimization.disable_specified_optimizers", "optimization.enable_cast_chain_elimination",
    "optimization.enable_gelu_approximation", "optimization.minimal_build_optimizations",
    "session.disable_aot_function_inlining", "session.disable_double_qdq_remover",
    "session.disable_prepacking", "session.disable_qdq_constant_folding",
    "session.enable_dq_matmulnbits_fusion", "session.enable_quant_qdq",
    "session.enable_quant_qdq_cleanup", "session.graph_optimizations_loop_level",
    "session.qdq_matmulnbits_accuracy_level", "session.qdq_matmulnbits_block_size",
    "session.qdqisint8allowed", "session.set_denormal_as_zero", "session.x64quantprecision",
)  # fmt: skip
"""Configuration entries that change graphs, packing or arithmetic."""

OTHER = (
    "ep.cpu.use_arena", "session.allow_released_opsets_only", "session.disable_cpu_ep_fallback",
    "session.dynamic_block_base", "session.force_spinning_stop",
    "session.inter_op.allow_spinning", "session.intra_op.allow_spinning",
    "session.intra_op_thread_affinities", "session.load_model_format",
    "session.record_ep_graph_assignment_info", "session.strict_shape_type_inference",
    "session.use_device_allocator_for_initializers", "session.use_env_allocators",
    "session.use_ort_model_bytes_directly",
)  # fmt: skip
"""Configuration entries that do not."""


def required_providers(providers: Sequence[Any] | None) -> list[Any]:
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


def chosen_mode(mode: str | None, providers: Sequence[Any]) -> Mode:
    """Return the mode that was asked for, or the strictest for providers on this system.

    Raises WeightguardError for one that there is not, or not here.
    """
    mappable = list(providers) == [CPU] and sys.platform == "linux"
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

    def __init__(self, given: Options):
        """``given`` is copied as far as options can be read; a callable is called instead.

        Raises WeightguardError for options that a copy would be wrong about.
        """
        self._make: Callable[[], ort.SessionOptions] | None = None
        if callable(given):
            self._make = given
        else:
            self._given = ort.SessionOptions() if given is None else given
            if self._given.has_providers():
                raise WeightguardError(_CALLABLE.format("providers that were added to them"))
        own = self._given if self._make is None else self._make()
        if own.optimized_model_filepath:
            raise WeightguardError(
                "options of a guarded session name no optimized_model_filepath: it would hold what "
                "was written before the session was verified"
            )

    def fresh(self, entries: Mapping[str, str] | None = None) -> ort.SessionOptions:
        """Return options of their own, with further configuration entries."""
        options = self._copied() if self._make is None else self._make()
        for key, value in (entries or {}).items():
            options.add_session_config_entry(key, value)
        return options

    def _copied(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        for name in (*DECIDING_ATTRIBUTES, *OTHER_ATTRIBUTES):
            if hasattr(self._given, name):
                setattr(options, name, getattr(self._given, name))
        for key in (*DECIDING, *OTHER):
            value = entry(self._given, key)
            if value is not None:
                options.add_session_config_entry(key, value)
        return options

    def described(self) -> dict[str, str]:
        """Return what can be read of the options and decides how weights run."""
        options = self.fresh()
        found = {n: str(getattr(options, n)) for n in DECIDING_ATTRIBUTES if hasattr(options, n)}
        entries = {key: value for key in DECIDING if (value := entry(options, key)) is not None}
        return found | entries


_CALLABLE = (
    "these options hold {}, which cannot be copied: give sess_options a callable that makes them"
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
