"""Names for tensors of nested graphs: unique, deterministic, and bounded whatever the file says."""

from __future__ import annotations

MAX_LABEL_CHARS = 64
"""One part of a path; a longer one is replaced by its position."""

MAX_NODE_NAME_CHARS = 512
"""A tensor named after its node's output; a longer one is named after the node's position."""


def label(text: str, otherwise: str, limit: int = MAX_LABEL_CHARS) -> str:
    """Return ``text``, or ``otherwise`` where it is empty or too long to repeat in many names."""
    return text if 0 < len(text) <= limit else otherwise


class UniqueNames:
    """Names handed out once: the second use of ``name`` becomes ``name~2``."""

    def __init__(self) -> None:
        self._uses: dict[str, int] = {}

    def claim(self, name: str) -> str:
        """Return ``name``, or its first free variant."""
        unique = name
        while unique in self._uses:
            self._uses[name] += 1
            unique = f"{name}~{self._uses[name]}"
        self._uses[unique] = 1
        return unique
