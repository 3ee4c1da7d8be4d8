"""One look at one live block, and the second and third one before anything is said."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from weightguard.guard.adapter import Adapter, AdapterError, Distant, LiveTensor, Token
from weightguard.guard.baseline import Key, TensorBaseline
from weightguard.guard.schedule import BlockRef

MAX_LOOKS = 4
"""Times that a block is looked at again while it is being written."""

Settle = Callable[[], None]


class Verdict(enum.Enum):
    """What a look at a block found."""

    SOUND = "sound"
    CHANGED = "changed"
    IN_FLUX = "in flux"
    VANISHED = "vanished"


@dataclass(frozen=True, slots=True)
class Look:
    """The outcome: the tensor's token, and for a changed block its bytes and their digest.

    ``looks`` is how often the block was read; more than one for a sound block means that a
    mismatch was not there any more: a write was under way, or a read went wrong.
    """

    verdict: Verdict
    token: Token | None = None
    digest: bytes = b""
    data: bytes = b""
    looks: int = 1


def look(adapter: Adapter, entry: TensorBaseline, ref: BlockRef, key: Key, settle: Settle) -> Look:
    """Compare one live block with its baseline.

    A mismatch counts once two more readings, ``settle`` apart, agree with each other under one
    token. A write that the runtime knows of moves the token when it is done, or is still going
    on and moves the bytes; both are waited for. Raises AdapterError.
    """
    now = _token(adapter, entry)
    if now is None:
        return Look(Verdict.VANISHED)
    if entry.holds(ref.block, live_digest(adapter, entry.tensor, ref, key)):
        return Look(Verdict.SOUND, now)
    for attempt in range(MAX_LOOKS):
        settle()
        before = _token(adapter, entry)
        if before is None:
            return Look(Verdict.VANISHED)
        data = bytes(_bytes(adapter, ref))
        digest = key.block_digest(entry.tensor, ref.start, memoryview(data))
        if entry.holds(ref.block, digest):
            return Look(Verdict.SOUND, before, looks=attempt + 2)
        settle()
        again = live_digest(adapter, entry.tensor, ref, key)
        if again == digest and _token(adapter, entry) == before:
            return Look(Verdict.CHANGED, before, digest, data, attempt + 2)
    return Look(Verdict.IN_FLUX, before)


def live_digest(adapter: Adapter, tensor: LiveTensor, ref: BlockRef, key: Key) -> bytes:
    """Return the keyed digest of a block as it is now, computed where it lies. Waits for it."""
    if tensor.distant and isinstance(adapter, Distant):
        sums = adapter.sums(ref.tensor, ref.start, ref.stop, key.secret).result()
        return key.digest(np.ascontiguousarray(sums).data.cast("B"))
    return key.digest(_bytes(adapter, ref))


def _bytes(adapter: Adapter, ref: BlockRef) -> memoryview:
    live = adapter.read(ref.tensor, ref.start, ref.stop)
    if live.nbytes != ref.nbytes:
        raise AdapterError(f"{live.nbytes} of {ref.nbytes} bytes of block {ref.block} were given")
    return live


def _token(adapter: Adapter, entry: TensorBaseline) -> Token | None:
    """Return the token, None where the tensor is gone or is another kind of tensor now."""
    now = adapter.describe(entry.tensor.name)
    return now.token if now is not None and now.kind == entry.tensor.kind else None
