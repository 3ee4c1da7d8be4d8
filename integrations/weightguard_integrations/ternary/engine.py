"""The compiled kernel of this process: which instruction set, how many threads."""

from __future__ import annotations

import os
from collections.abc import Callable

try:
    from weightguard_integrations.ternary import _native as native
except ImportError as error:
    raise ImportError(
        "the ternary kernel was not compiled: install a C++17 compiler (g++ or clang++) and "
        "install weightguard-integrity again"
    ) from error

__all__ = ["available_isas", "isa", "native", "num_threads", "select_isa", "set_num_threads"]

ISA_VARIABLE = "WEIGHTGUARD_TERNARY_ISA"
THREADS_VARIABLE = "WEIGHTGUARD_TERNARY_THREADS"
"""Without it, all processors of this process."""


def available_isas() -> tuple[str, ...]:
    """Return the instruction sets that this processor can run, slowest first."""
    return native.available_isas()


def isa() -> str:
    """Return the instruction set in use."""
    return native.active_isa()


def select_isa(name: str) -> None:
    """Use one of ``available_isas`` in the whole process; results are the same in every bit.

    Raises ValueError for others.
    """
    if name not in available_isas():
        raise ValueError(f"{name!r:.40} is none of {', '.join(available_isas())}")
    native.select_isa(name)


def num_threads() -> int:
    """Return how many threads a product may use, the caller's included."""
    return native.thread_count()


def set_num_threads(threads: int) -> None:
    """Let products use up to ``threads`` threads, 1 to 256. Raises TypeError, ValueError."""
    if not isinstance(threads, int):
        raise TypeError(f"threads is a {type(threads).__name__}; it must be a whole number")
    native.set_thread_count(threads)


def _obey(variable: str, choose: Callable[[str], None]) -> None:
    """Raise ValueError that names the variable if its value is none; empty is not set."""
    if value := os.environ.get(variable):
        try:
            choose(value)
        except ValueError as error:
            raise ValueError(f"environment variable {variable}={value!r:.40}: {error}") from error


_obey(ISA_VARIABLE, select_isa)
_obey(THREADS_VARIABLE, lambda value: set_num_threads(int(value)))
