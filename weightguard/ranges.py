"""Value ranges of tensors as reports record them: what one pass says about each, in few bytes."""

from __future__ import annotations

import msgspec


class TensorRange(msgspec.Struct, frozen=True):
    """One tensor that was read to its end: where it lies, and the range of its values.

    ``file`` is relative to the checkpoint, ``offset`` the file offset of its first canonical byte
    (None where they are no contiguous run), ``nbytes`` the number of canonical bytes. ``min``,
    ``max``, ``absmax`` and ``rms`` are over its finite scalars, rounded to binary64; the first two
    are None where there is none. ``zero``, ``nan`` and ``inf`` count scalars. ``raw`` says that the
    scalars are raw blocks of a type that is not dequantised, whose numbers mean nothing.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str
    offset: int | None
    min: float | None
    max: float | None
    absmax: float
    rms: float
    zero: int
    nan: int
    inf: int
    raw: bool = False
