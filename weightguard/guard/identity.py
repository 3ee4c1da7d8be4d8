"""Who wrote a live tensor: corruption, an update nobody declared, or a swapped adapter.

The runtime's own account decides (``Token``). A tensor whose token moved is written by somebody
until every one of its blocks was found to hold its old content under the new token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from weightguard.guard.adapter import Token

Writer: TypeAlias = Literal["nobody", "undeclared", "adapter"]


@dataclass(slots=True)
class Identity:
    """The account of one live tensor's writes since it was sealed.

    ``sealed`` is the token that its content is known under. ``writer`` says who changes it, as
    far as the runtime knows. Not safe to share between threads without a lock.
    """

    sealed: Token
    blocks: int
    writer: Writer = "nobody"
    _seen: Token | None = None
    _verified: set[int] = field(default_factory=set)

    @property
    def settled(self) -> Token | None:
        """The token that the content is known under, None while a write is suspected."""
        return self.sealed if self._seen is None else None

    def see(self, token: Token) -> None:
        """Take note of the token that the tensor has now."""
        if token == (self._seen or self.sealed):
            return
        if token.variant != (self._seen or self.sealed).variant:
            self.writer = "adapter"
        elif self.writer == "nobody":
            self.writer = "undeclared"
        self._seen = token
        self._verified.clear()

    def verified(self, block: int, token: Token) -> bool:
        """Take note that a block holds its old content; return whether the whole tensor does.

        That ends the suspicion: from then on the new token is the one that content is known by.
        """
        self.see(token)
        if self._seen is None:
            return False
        self._verified.add(block)
        if len(self._verified) < self.blocks:
            return False
        self.sealed, self._seen, self.writer = self._seen, None, "nobody"
        self._verified.clear()
        return True

    @property
    def moves(self) -> tuple[str, ...]:
        """What of the token moved, in words."""
        seen = self._seen or self.sealed
        return tuple(
            word
            for word, moved in (
                ("its address moved", seen.storage != self.sealed.storage),
                ("its version moved", seen.version != self.sealed.version),
                ("what is merged into it changed", seen.variant != self.sealed.variant),
            )
            if moved
        )
