"""What a guarded session may be told, checked before anything is read."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightguard.errors import WeightguardError
from weightguard.guard import Pace, Settings
from weightguard.guard.quantities import parse_bytes, parse_rate
from weightguard_integrations.onnxruntime.options import Mode


def model_path(given: object) -> str | os.PathLike[str]:
    """Return the path of a model file; raises WeightguardError for what is none."""
    if not isinstance(given, (str, os.PathLike)):
        raise WeightguardError(
            "give a path: what is verified are files, "
            + ("not bytes of a graph" if isinstance(given, bytes) else f"not {given!r:.100}")
        )
    if Path(given).is_dir():
        raise WeightguardError(f"{os.fspath(given)!r:.300} is a folder: give the .onnx file in it")
    return given


def refuse(further: dict[str, Any], canary_share: float) -> None:
    """Raise WeightguardError for what a guarded session cannot be told."""
    if further:
        raise WeightguardError(
            f"a guarded session takes no {sorted(further)[0]!r:.100}: it has no fallback, and what "
            "else is to be set belongs into sess_options"
        )
    if not 0 <= canary_share < 1:
        raise WeightguardError(f"canary_share is a part of the time below 1, not {canary_share}")


def settings_of(
    given: Settings | None,
    path: str | os.PathLike[str],
    mode: Mode,
    scrub: str | int | None,
    step_budget: str | int,
) -> Settings:
    """Return the settings of a session's guard: ``given``, and scrubbing where they set none.

    An opaque session has nothing to scrub. Raises WeightguardError for what are no settings, rates
    or numbers of bytes.
    """
    if given is not None and not isinstance(given, Settings):
        raise WeightguardError(f"settings are weightguard.guard.Settings, not {given!r:.100}")
    settings = given or Settings(name=f"onnxruntime {Path(path).name}")
    pace = settings.pace or (None if scrub is None else Pace(parse_rate(scrub)))
    step_bytes = settings.step_bytes or parse_bytes(step_budget)
    return replace(settings, pace=None if mode == "opaque" else pace, step_bytes=step_bytes)
