"""What the suite needs of a runtime beside its adapter: ways to use it and to harm it."""

from __future__ import annotations

from typing import Protocol

from weightguard.guard import Adapter


class Subject(Protocol):
    """A small running model under test."""

    adapter: Adapter

    def run(self) -> bytes:
        """Run one forward pass; return its output, which depends on every weight."""
        ...

    def poke(self, name: str, start: int, data: bytes) -> None:
        """Overwrite live bytes behind the runtime's back, as a faulty memory would."""
        ...

    def rewrite(self, name: str, data: bytes) -> None:
        """Overwrite a whole tensor the legitimate way, as an optimizer or a loader would."""
        ...
