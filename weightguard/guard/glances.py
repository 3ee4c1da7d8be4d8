"""Glances at live tensors, where an adapter gives any."""

from __future__ import annotations

from weightguard.guard.adapter import Adapter, Glance, Glancing, Token


class Glances:
    """Asks one adapter; whether it can be asked is told once, as Python takes long to tell."""

    def __init__(self, adapter: Adapter):
        self._adapter = adapter if isinstance(adapter, Glancing) else None

    def at(self, tensor: str, token: Token | None) -> Glance | None:
        """Return the bytes of a tensor that is known under ``token``, None where a look is due."""
        if token is None or self._adapter is None:
            return None
        try:
            return self._adapter.glance(tensor, token)
        except Exception:  # noqa: BLE001 - the look that follows says what is wrong
            return None
