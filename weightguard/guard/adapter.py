"""What the guard needs of a runtime: three methods, and a few optional ones.

An adapter names the tensors that a runtime computes with *now* and reads their canonical bytes
where the kernels read them. It decides nothing: comparing, classifying and reacting are the
guard's. Every adapter passes ``tests/conformance``.

Methods are called from several threads at once, and while the model runs. Whatever goes wrong is
an ``AdapterError``, which the guard turns into an incident; the server goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from weightguard.errors import WeightguardError
from weightguard.finding import Finding
from weightguard.tensor import DType, RowLayout, row_layout

T_co = TypeVar("T_co", covariant=True)
GapKind: TypeAlias = Literal["copied", "unreachable"]
Hearing: TypeAlias = Callable[[Sequence[str], Sequence[Finding]], None]
"""Who hears a witness: told the names of live tensors, and findings about them."""


class AdapterError(WeightguardError):
    """The runtime did not let its memory be read or written; the message says why."""


@dataclass(frozen=True, slots=True)
class Token:
    """Identity of a live tensor's content, as far as the runtime itself keeps account of it.

    ``storage`` is the address of the first byte; ``version`` counts the writes that the runtime
    knows of; ``variant`` names what is merged into the tensor, such as a LoRA adapter. Bytes that
    change under an equal token were changed behind the runtime's back: that is corruption.
    """

    storage: int
    version: int = 0
    variant: str = ""


@dataclass(frozen=True, slots=True)
class LiveTensor:
    """One tensor in a running model, tied names once.

    ``name`` is the adapter's own and stays the same while the tensor moves; ``aliases`` are its
    further names. Packed or opaque bytes are ``U8``, in a shape whose rows divide them well:
    one changed element a row and block can be repaired. ``distant`` ones lie in a device's memory,
    where they are summed up instead of read: see Distant.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    token: Token
    aliases: tuple[str, ...] = ()
    distant: bool = False

    @property
    def nbytes(self) -> int:
        """The number of canonical bytes."""
        return self.dtype.nbytes(math.prod(self.shape))

    @property
    def kind(self) -> tuple[DType, tuple[int, ...], bool]:
        """What it cannot exchange for another: dtype, shape, and whose memory it lies in."""
        return self.dtype, self.shape, self.distant

    @property
    def layout(self) -> RowLayout:
        """The row layout that residues follow."""
        return row_layout(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Gap:
    """Live weights that the adapter cannot read where they run.

    ``copied``: the runtime computes with a copy elsewhere, so checking the original proves
    little; ``unreachable``: nothing of it can be read. ``nbytes`` is None where unknown.
    """

    name: str
    kind: GapKind
    nbytes: int | None
    reason: str


class Adapter(Protocol):
    """Lists and reads live tensors; all an adapter must be able to do."""

    def tensors(self) -> Sequence[LiveTensor]:
        """Return all live tensors as they are now, each byte of memory in one of them only."""
        ...

    def describe(self, name: str) -> LiveTensor | None:
        """Return one tensor as it is now, None where the model has none of that name any more.

        Called for every block that is checked, so it must be cheap.
        """
        ...

    def read(self, name: str, start: int, stop: int) -> memoryview:
        """Return canonical bytes ``start:stop``, a view of the live memory where there is one.

        A view of bytes; the memory stays valid while it is held. Raises AdapterError.
        """
        ...


class Glance(NamedTuple):
    """The canonical bytes of a whole live tensor where they lie; valid while ``owner`` is held."""

    data: memoryview
    owner: object


@runtime_checkable
class Glancing(Protocol):
    """An adapter that gives the bytes of a tensor that stayed where it was within microseconds."""

    def glance(self, name: str, token: Token) -> Glance | None:
        """Return a tensor's bytes if ``describe`` would give ``token``, as it did before.

        None where it would not, or where that takes long to tell: then it is described and read.
        """
        ...


class Promised(Protocol[T_co]):
    """What was asked of a device and is on its way."""

    def ready(self) -> bool:
        """Return whether ``result`` would not wait."""
        ...

    def result(self) -> T_co:
        """Wait for the answer and return it. Raises AdapterError."""
        ...


@runtime_checkable
class Distant(Protocol):
    """An adapter of tensors in a device's memory, which it sums up where they lie.

    Neither method waits for the device, so that a forward pass may call them. Both see what the
    calling thread had the device write before. Raise AdapterError.
    """

    def sums(
        self, name: str, start: int, stop: int, secret: NDArray[np.uint64]
    ) -> Promised[NDArray[np.uint64]]:
        """Ask for the sums of each part of a row in each of the blocks that are ``start:stop``.

        uint64 (parts, 3) as of ``weightguard.guard.sums``; ``secret`` holds a number for each
        place in a part, and stays the same object.
        """
        ...

    def fetch(self, name: str, start: int, stop: int) -> Promised[bytes]:
        """Ask for a few canonical bytes."""
        ...


@runtime_checkable
class Writable(Protocol):
    """An adapter that can repair in place."""

    def write(self, name: str, start: int, data: bytes) -> None:
        """Put ``data`` at byte ``start`` of the live memory, without a new version of the tensor.

        Takes effect before it returns, for whoever computes with the tensor. Raises AdapterError.
        """
        ...


@runtime_checkable
class Attachable(Protocol):
    """An adapter that can call the guard from the forward pass."""

    def attach(self, before_step: Callable[[], None]) -> Callable[[], None]:
        """Have ``before_step`` called before each forward pass; return what detaches it.

        What ``before_step`` raises ends the forward pass. Works on a compiled model.
        """
        ...


@runtime_checkable
class Witness(Protocol):
    """An adapter of a runtime that notices damage itself, while it computes."""

    def witness(self, hearing: Hearing) -> Callable[[], None]:
        """Have ``hearing`` called with names of live tensors and findings; return what ends that.

        The first finding is what was noticed, the others say what explains it.
        """
        ...


@runtime_checkable
class Incomplete(Protocol):
    """An adapter that knows of weights which it cannot reach."""

    def gaps(self) -> Sequence[Gap]:
        """Return what of the model's weights ``tensors`` does not cover, or not where it runs."""
        ...


@runtime_checkable
class Accounting(Protocol):
    """An adapter of a runtime that makes other bytes of the attested ones before it uses them.

    It has verified the whole of what it was made from by then: what the manifest attests need not
    be in live tensors of its own, since it may be fused with others or folded away.
    """

    def account(self, name: str) -> str | None:
        """Return how the bytes of a live tensor follow from attested ones, None if they equal one.

        Said only of what was checked: the guard calls such a tensor ``transformed``.
        """
        ...
