"""Fault drills: the same damage in a copy of a checkpoint, whoever asks for it; never in itself."""

from __future__ import annotations

import difflib
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.checkpoint.files import FileRange
from weightguard.checkpoint.names import shown
from weightguard.errors import WeightguardError
from weightguard.repair.folders import (
    copy_rest,
    new_checkpoint,
    refuse_inside,
    refuse_target,
    write_images,
)
from weightguard.repair.image import Image, PatchStore
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.tensor import TensorView

MAX_FLIPS = 10_000_000


@dataclass(frozen=True, slots=True)
class Flip:
    """Flip bit ``bit`` of one element; in blocks of GGML, of the whole block that holds it."""

    tensor: str
    index: tuple[int, ...]
    bit: int


@dataclass(frozen=True, slots=True)
class Zero:
    """Zero a tensor, or one of its elements (of GGML: the whole block that holds it)."""

    tensor: str
    index: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Random:
    """Flip ``count`` different bits, anywhere in the tensors, as ``seed`` says."""

    count: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Truncate:
    """Cut ``nbytes`` off the end of a file: the last one that holds tensors unless it is named."""

    nbytes: int
    file: str | None = None


Fault = Flip | Zero | Random | Truncate


@dataclass(frozen=True, slots=True)
class Change:
    """What was done: ``nbytes`` bytes of ``file`` from ``offset`` on; ``tensor`` unless cut off.

    ``element`` is the full index of the element, or of the first in its block of elements;
    ``before`` and ``after`` are the byte of a flipped bit, in hex.
    """

    kind: Literal["flip", "zero", "truncate"]
    file: str
    offset: int
    nbytes: int
    tensor: str | None = None
    element: tuple[int, ...] | None = None
    bit: int | None = None
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Injection:
    """Where the damaged copy is, and every change in it, in the order they were made."""

    output: str
    changes: tuple[Change, ...]
    schema: Literal["weightguard-injection-v1"] = "weightguard-injection-v1"


def _refuse_unfinished(checkpoint: Checkpoint) -> None:
    """Raise WeightguardError for files that an interrupted repair may have left half written."""
    for found in checkpoint.findings:
        if found.rule == "WG123":
            raise WeightguardError(f"{found.message}: nothing was written. {found.remedy}")


def inject(
    path: str | os.PathLike[str], output: str | os.PathLike[str], faults: Sequence[Fault]
) -> Injection:
    """Write a copy of the checkpoint at ``path`` with ``faults`` in it to ``output``.

    The same faults make the same copy. Raises CheckpointError where the checkpoint cannot be read,
    WeightguardError for a tensor, element or bit that it has not, and for an ``output`` that is
    there already or lies inside the checkpoint; then nothing is written.
    """
    path, output = Path(path), Path(output)
    refuse_target(output, path)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(path))
        _refuse_unfinished(checkpoint)
        store = PatchStore()
        stack.callback(store.close)
        try:
            drill = _Drill(checkpoint, store)
            changes = tuple(change for fault in faults for change in drill.make(fault))
            _write(path, output, drill.images)
        except OSError as error:
            raise WeightguardError(
                f"cannot write {str(output)!r}: {error.strerror or error}. Check the free space."
            ) from error
        return Injection(str(output), changes)


def _write(path: Path, output: Path, images: dict[str, Image]) -> None:
    single = not path.is_dir() and len(images) == 1
    if not path.is_dir() and not single:
        refuse_inside(output, path)
    with new_checkpoint(output, single=single) as work:
        named = dict(zip([output.name], images.values(), strict=True)) if single else images
        write_images(named, work)
        if path.is_dir():
            copy_rest(path, work, images)


class _Drill:
    """A checkpoint's files as they will be."""

    def __init__(self, checkpoint: Checkpoint, store: PatchStore):
        self.images = {f.name: Image(f.name, f, f.size, store) for f in checkpoint.files}
        self._tensors = {
            tensor.name: tensor
            for tensor in checkpoint.tensors
            if isinstance(tensor.source, FileRange)
        }

    def make(self, fault: Fault) -> Iterator[Change]:
        match fault:
            case Flip():
                yield self._flip(fault)
            case Zero():
                yield from self._zero(fault)
            case Random():
                yield from self._random(fault)
            case Truncate():
                yield self._truncate(fault)

    def _tensor(self, name: str) -> TensorView:
        tensor = self._tensors.get(name)
        if tensor is None:
            close = difflib.get_close_matches(name[:200], self._tensors, n=1)
            hint = f"; did you mean {shown(close[0])}?" if close else "."
            raise WeightguardError(
                f"the checkpoint has no tensor {shown(name)} that lies in one run of a file{hint} "
                "`weightguard inspect` lists its tensors."
            )
        return tensor

    def _element(self, tensor: TensorView, index: tuple[int, ...]) -> int:
        try:
            return tensor.element(index)
        except ValueError as error:
            raise WeightguardError(f"{shown(tensor.name)}: {error}") from error

    def _flip(self, fault: Flip) -> Change:
        tensor = self._tensor(fault.tensor)
        dtype = tensor.dtype
        block, position = divmod(self._element(tensor, fault.index), dtype.block_elements)
        whole = dtype.is_quantised or dtype.is_opaque
        bits = 8 * dtype.block_bytes // (1 if whole else dtype.block_elements)
        if not 0 <= fault.bit < bits:
            unit = "a block" if whole else "an element"
            raise WeightguardError(
                f"{unit} of {shown(tensor.name)} ({dtype.name}) has bits 0 to {bits - 1}, "
                f"not {fault.bit}"
            )
        place = fault.bit if whole else position * bits + fault.bit
        offset = block * dtype.block_bytes + place // 8
        return self._flip_bit(tensor, offset, place % 8, fault.index, fault.bit)

    def _flip_bit(
        self, tensor: TensorView, offset: int, mask_bit: int, index: tuple[int, ...], bit: int
    ) -> Change:
        image, start = self._place(tensor)
        byte = bytearray(1)
        image.read_into(start + offset, memoryview(byte))
        flipped = bytes([byte[0] ^ 1 << mask_bit])
        image.patch(start + offset, flipped, None)
        return Change(
            "flip", image.name, start + offset, 1, tensor.name, index, bit,
            f"{byte[0]:#04x}", f"{flipped[0]:#04x}",
        )  # fmt: skip

    def _place(self, tensor: TensorView) -> tuple[Image, int]:
        assert isinstance(tensor.source, FileRange)
        return self.images[tensor.source.file.name], tensor.source.start

    def _zero(self, fault: Zero) -> Iterator[Change]:
        tensor = self._tensor(fault.tensor)
        image, start = self._place(tensor)
        if fault.index is None:
            for offset in range(0, tensor.nbytes, BLOCK_BYTES):
                size = min(BLOCK_BYTES, tensor.nbytes - offset)
                image.patch(start + offset, bytes(size), None)
            yield Change("zero", image.name, start, tensor.nbytes, tensor.name)
            return
        dtype = tensor.dtype
        if dtype.block_bytes * 8 % dtype.block_elements or dtype.block_elements in (2, 4):
            raise WeightguardError(
                f"elements of {shown(tensor.name)} ({dtype.name}) share bytes: flip bits of one"
            )
        block = self._element(tensor, fault.index) // dtype.block_elements
        offset = start + block * dtype.block_bytes
        image.patch(offset, bytes(dtype.block_bytes), None)
        first = tensor.index(block * dtype.block_elements)
        yield Change("zero", image.name, offset, dtype.block_bytes, tensor.name, first)

    def _random(self, fault: Random) -> Iterator[Change]:
        tensors = sorted(self._tensors.values(), key=lambda tensor: tensor.name)
        total = 8 * sum(tensor.nbytes for tensor in tensors)
        if not 0 <= fault.count <= min(total, MAX_FLIPS):
            raise WeightguardError(f"cannot flip {fault.count} different bits of {total}")
        chosen = random.Random(fault.seed).sample(range(total), fault.count)  # noqa: S311
        at, first = iter(tensors), 0
        tensor = next(at, None)
        for place in sorted(chosen):
            while tensor is not None and place - first >= 8 * tensor.nbytes:
                first += 8 * tensor.nbytes
                tensor = next(at)
            assert tensor is not None
            offset, mask_bit = divmod(place - first, 8)
            index, bit = _element_at(tensor, offset, mask_bit)
            yield self._flip_bit(tensor, offset, mask_bit, index, bit)

    def _truncate(self, fault: Truncate) -> Change:
        name = fault.file
        if name is None:
            holding = [self._place(tensor)[0].name for tensor in self._tensors.values()]
            name = (holding or list(self.images))[-1]
        image = self.images.get(name)
        if image is None:
            raise WeightguardError(f"the checkpoint has no file {shown(name)}")
        if not 0 < fault.nbytes <= image.size:
            raise WeightguardError(
                f"{shown(name)} has {image.size} bytes; {fault.nbytes} cannot be cut off"
            )
        image.size -= fault.nbytes
        return Change("truncate", name, image.size, fault.nbytes)


def _element_at(tensor: TensorView, offset: int, mask_bit: int) -> tuple[tuple[int, ...], int]:
    """Return the full index of the element that holds a bit, and the bit's number in it."""
    dtype = tensor.dtype
    block, inner = divmod(offset, dtype.block_bytes)
    place = 8 * inner + mask_bit
    if dtype.is_quantised or dtype.is_opaque:
        return tensor.index(block * dtype.block_elements), place
    bits = 8 * dtype.block_bytes // dtype.block_elements
    element, bit = divmod(place, bits)
    return tensor.index(block * dtype.block_elements + element), bit
