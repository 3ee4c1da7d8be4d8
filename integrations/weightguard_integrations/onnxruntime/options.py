"""Session options: what of them decides how weights are optimised, and changes that are undone."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort

CPU = "CPUExecutionProvider"

ATTRIBUTES = (
    "enable_mem_pattern", "enable_mem_reuse", "execution_mode", "execution_order",
    "graph_optimization_level", "inter_op_num_threads", "intra_op_num_threads",
    "use_deterministic_compute", "use_per_session_threads",
)  # fmt: skip

ENTRIES = (
    "ep.cpu.use_arena", "mlas.enable_gemm_fastmath_arm64_bfloat16", "mlas.use_lut_gemm",
    "mlas.disable_kleidiai", "optimization.disable_specified_optimizers",
    "optimization.enable_cast_chain_elimination", "optimization.enable_gelu_approximation",
    "optimization.memory_optimizer_config", "optimization.minimal_build_optimizations",
    "session.disable_aot_function_inlining", "session.disable_double_qdq_remover",
    "session.disable_prepacking", "session.disable_qdq_constant_folding",
    "session.enable_dq_matmulnbits_fusion", "session.enable_quant_qdq",
    "session.enable_quant_qdq_cleanup", "session.graph_optimizations_loop_level",
    "session.qdq_matmulnbits_accuracy_level", "session.qdq_matmulnbits_block_size",
    "session.qdqisint8allowed", "session.set_denormal_as_zero", "session.x64quantprecision",
)  # fmt: skip
"""Configuration entries that change graphs, packing or arithmetic."""


def described(options: ort.SessionOptions) -> dict[str, str]:
    """Return what can be read of options and decides how weights run.

    Free dimension overrides and libraries of custom operators cannot be read.
    """
    found = {name: str(getattr(options, name)) for name in ATTRIBUTES if hasattr(options, name)}
    entries = {name: value for name in ENTRIES if (value := entry(options, name)) is not None}
    return found | entries


def entry(options: ort.SessionOptions, key: str) -> str | None:
    """Return a configuration entry, None where it is not set."""
    try:
        value: str = options.get_session_config_entry(key)
    except RuntimeError:
        return None
    return value


@contextmanager
def changed(
    options: ort.SessionOptions, attributes: Mapping[str, object], entries: Mapping[str, str]
) -> Iterator[None]:
    """Change options, and change them back as far as onnxruntime lets one when the block ends."""
    former = {name: getattr(options, name) for name in attributes}
    former_entries = {key: entry(options, key) or "" for key in entries}
    for name, value in attributes.items():
        setattr(options, name, value)
    for key, text in entries.items():
        options.add_session_config_entry(key, text)
    try:
        yield
    finally:
        for name, value in former.items():
            setattr(options, name, value)
        for key, text in former_entries.items():
            options.add_session_config_entry(key, text or _OFF.get(key, ""))


_OFF = {
    "session.save_external_prepacked_constant_initializers": "0",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}


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
