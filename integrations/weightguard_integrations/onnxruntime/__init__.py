"""ONNX Runtime: sessions whose weights are verified at load and while they serve.

``GuardedSession(path, manifest=..., mode=...)`` is an ``onnxruntime.InferenceSession``;
``Cache(folder, limit)`` keeps sealed models. Importing this package does not import onnxruntime;
taking ``GuardedSession`` from it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightguard_integrations.onnxruntime.cache import Cache
    from weightguard_integrations.onnxruntime.session import GuardedSession

__all__ = ["Cache", "GuardedSession"]


def __getattr__(name: str) -> Any:
    if name == "GuardedSession":
        from weightguard_integrations.onnxruntime.session import GuardedSession

        return GuardedSession
    if name == "Cache":
        from weightguard_integrations.onnxruntime.cache import Cache

        return Cache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
