"""Which adapters are merged into a model's layers, and how often that changed between looks.

PEFT adds an adapter to the weights through ``.data``, which torch does not count, and taking it
away again rounds: weights that were merged for a few requests differ, with nothing merged into
them any more. So each forward pass looks, and what changed from one to the next stays counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

MERGED = "merged_adapters"
"""The attribute of PEFT's layers that names what is merged into them."""


class Swaps:
    """The layers of one module that adapters can be merged into."""

    def __init__(self) -> None:
        self._layers: tuple[tuple[nn.Module, tuple[str, ...]], ...] = ()
        self._counts: dict[int, int] = {}

    def take(self, modules: Iterable[nn.Module]) -> None:
        """Count what changed so far, and look at these modules from now on."""
        self.look()
        self._layers = tuple((m, merged_into(m)) for m in modules if MERGED in m.__dict__)
        kept = {id(module) for module, _ in self._layers}
        self._counts = {key: count for key, count in self._counts.items() if key in kept}

    def look(self) -> None:
        """Count one more change of each layer that has others merged than at the last look."""
        changed = False
        for module, merged in self._layers:
            if merged_into(module) != merged:
                self._counts[id(module)] = self._counts.get(id(module), 0) + 1
                changed = True
        if changed:
            self._layers = tuple((module, merged_into(module)) for module, _ in self._layers)

    def told(self, module: nn.Module) -> tuple[str, ...]:
        """Return what is merged into a module, and how often that changed if it did."""
        count = self._counts.get(id(module))
        return merged_into(module) if count is None else (*merged_into(module), f"change {count}")


def merged_into(module: nn.Module) -> tuple[str, ...]:
    """Return the adapters merged into a module; not by getattr, which is slow at failing."""
    return tuple(module.__dict__.get(MERGED) or ())
