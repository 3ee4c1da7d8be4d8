"""Will the model fit? Asked before it is loaded: the kernel's answer to too much is a kill."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from pathlib import Path

from weightguard.errors import WeightguardError
from weightguard.tensor import TensorView

BYTES_A_WEIGHT = 8
"""float32 weights, and once more their size: the canary runs in float64 and from copies."""
WORKSPACE_BYTES = 1 << 30
"""Interpreter, libraries, tokenizer, activations and logits of the prompts."""

_MEMORY_INFO = Path("/proc/meminfo")
_OWN_SIZE = Path("/proc/self/statm")
_GROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def needed_memory(tensors: Iterable[TensorView]) -> int:
    """Return the bytes that calibrating a model of these tensors takes, quantised or not."""
    return BYTES_A_WEIGHT * sum(tensor.elements for tensor in tensors) + WORKSPACE_BYTES


def available_memory() -> int | None:
    """Return the bytes that this process may still take, or None where nothing tells."""
    known = [
        _meminfo_available(),
        _address_space_rest(),
        *(_group_rest(*files) for files in _GROUP_LIMITS),
    ]
    return min((size for size in known if size is not None), default=None)


def check_memory(tensors: Iterable[TensorView]) -> None:
    """Raise WeightguardError when the model of these tensors does not fit into memory."""
    needed, available = needed_memory(tensors), available_memory()
    if available is not None and needed > available:
        raise WeightguardError(
            f"calibrating this model takes about {needed / 1e9:.1f} GB of memory, of which "
            f"{available / 1e9:.1f} GB are available. Free memory or use a larger machine."
        )


def _meminfo_available() -> int | None:
    try:
        lines = _MEMORY_INFO.read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(sizes[0]) * 1024 if sizes else None


def _address_space_rest() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    pages = int(_OWN_SIZE.read_text().split()[0])
    return max(0, limit - pages * resource.getpagesize())


def _group_rest(limit: Path, used: Path) -> int | None:
    try:
        return max(0, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):
        return None  # no such control group, or "max"
