"""Being called before every forward pass of a model, compiled or not, without breaking its graph.

A compiled module traces the hooks of what it wraps once, and ignores hooks that come later. So:

- a pre-hook of the root serves eager calls; where it is traced it becomes one opaque operation
  of the graph, which stays whole and calls the guard each time it runs;
- a pre-hook of the module that ``torch.compile`` returned, where that one was given to the guard,
  fires outside of compiled code, and so works also after the first compiled run;
- a model that was compiled in place has its compiled call wrapped.

Whichever comes first in a forward pass counts, the others stay silent.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_numbers = itertools.count()
_registering = threading.Lock()
_entrances: weakref.WeakValueDictionary[int, Entrance] = weakref.WeakValueDictionary()
"""Who is called by a graph's operation; a graph may outlive the guard that it was traced with."""


class Entrance:
    """Calls ``before_step`` once before each forward pass, until it is removed."""

    def __init__(self, model: nn.Module, root: nn.Module, before_step: Callable[[], None]):
        """``model`` is what is called; ``root`` what it wraps, or itself."""
        import torch

        self._before_step: Callable[[], None] | None = before_step
        self._entered = threading.local()
        number = next(_numbers)
        _entrances[number] = self
        operation, token = _operation(), torch.zeros(1)

        def inner(_module: nn.Module, _inputs: tuple[Any, ...]) -> None:
            if torch.compiler.is_compiling():
                operation(token, number)
            else:
                self.inner()

        self._hooks = [root.register_forward_pre_hook(inner, prepend=True)]
        if model is not root:
            self._hooks.append(model.register_forward_pre_hook(self._outer_hook, prepend=True))
        self._wrap_compiled_call(root)

    def _outer_hook(self, _module: nn.Module, _inputs: tuple[Any, ...]) -> None:
        self.outer()

    def _wrap_compiled_call(self, root: nn.Module) -> None:
        self._root, self._compiled = root, getattr(root, "_compiled_call_impl", None)
        compiled = self._compiled
        if compiled is None:
            return

        def call(*args: Any, **kwargs: Any) -> Any:
            self.outer()
            return compiled(*args, **kwargs)

        root._compiled_call_impl = call

    def outer(self) -> None:
        """A forward pass begins outside of compiled code."""
        self._entered.already = True
        self._call()

    def inner(self) -> None:
        """A forward pass begins at the root; nothing happens where ``outer`` was there first."""
        if getattr(self._entered, "already", False):
            self._entered.already = False
        else:
            self._call()

    def _call(self) -> None:
        if self._before_step is not None:
            self._before_step()

    def remove(self) -> None:
        """Call nobody any more."""
        self._before_step = None
        for hook in self._hooks:
            hook.remove()
        if self._compiled is not None:
            self._root._compiled_call_impl = self._compiled


def _operation() -> Callable[[torch.Tensor, int], None]:
    with _registering:  # as two threads may be the first
        return _registered()


@functools.cache
def _registered() -> Callable[[torch.Tensor, int], None]:
    """Return the operation that stands in compiled graphs; it claims to write its token.

    So no compiler drops it or moves it to another place in the order of effects.
    """
    import torch

    def before_step(_token: torch.Tensor, number: int) -> None:
        entrance = _entrances.get(number)
        if entrance is not None:
            entrance.inner()

    registered = torch.library.custom_op(
        "weightguard::before_step",
        before_step,
        mutates_args=("token",),
        schema="(Tensor(a!) token, int number) -> ()",
    )
    registered.register_fake(lambda _token, _number: None)
    operation: Callable[[torch.Tensor, int], None] = torch.ops.weightguard.before_step
    return operation
