"""What is to be repaired: images of the files, and where the manifest's tensors lie in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from weightguard.catalogue import Severity
from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.checkpoint.files import FileRange, Folder
from weightguard.checkpoint.hugging_face import blobs_of
from weightguard.compare import match_names
from weightguard.errors import CheckpointError
from weightguard.layout import Layout, layout_of
from weightguard.manifest import Manifest, TensorRecord
from weightguard.repair.frame import Frame
from weightguard.repair.image import Image, ImageRange, PatchStore
from weightguard.tensor import TensorView


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the manifest and where it should lie; ``view`` reads through the image."""

    number: int
    name: str
    record: TensorRecord
    view: TensorView
    image: Image
    start: int


@dataclass(frozen=True, slots=True)
class Target:
    """The files of a checkpoint as images, and the tensors that can be written in them.

    ``frame`` knows the containers' own bytes, if anything does. ``root`` is the folder that file
    names are relative to.
    """

    root: Path
    images: dict[str, Image]
    places: dict[int, Place]
    readable: dict[int, TensorView]
    """Tensors that can be read but not written in one run; they lend their bytes to parity."""
    frame: Frame | None


def open_target(
    path: Path, manifest: Manifest, frame: Frame | None, store: PatchStore, stack: ExitStack
) -> Target:
    """Return what is to be repaired; its files are closed with ``stack``.

    Where parity knows the files, its ``frame`` is what is believed, and a header is damage like
    any other; else the checkpoint's own headers are. Raises CheckpointError where it cannot be
    read and there is no frame.
    """
    try:
        checkpoint = stack.enter_context(open_checkpoint(path))
    except CheckpointError:
        if frame is None:
            raise
        return framed_target(path, manifest, frame, store, stack)
    if frame and not _laid_out_otherwise(checkpoint, manifest, frame.layout, frame.names):
        return framed_target(path, manifest, frame, store, stack)
    return _from_checkpoint(checkpoint, manifest, store)


def _laid_out_otherwise(
    checkpoint: Checkpoint, manifest: Manifest, layout: Layout, names: dict[str, str]
) -> bool:
    """Return whether the checkpoint is sound in its own layout: the same tensors, saved anew."""
    graver = {found.rule for found in checkpoint.findings if found.level >= Severity.ERROR}
    # a journal beside the files says nothing of how they are laid out
    if graver - {"WG123"}:
        return False
    recorded = manifest.document.tensors
    tensors = {tensor.name: tensor for tensor in checkpoint.tensors}
    if tensors.keys() != recorded.keys():
        return False
    if any((t.dtype.name, t.shape) != (recorded[n].dtype, recorded[n].shape)
           for n, t in tensors.items()):  # fmt: skip
        return False
    own = {f.name: f.tensors for f in layout_of(checkpoint, manifest.numbers).files if f.tensors}
    return own != {names[f.name]: f.tensors for f in layout.files if f.tensors}


def framed_target(
    path: Path, manifest: Manifest, frame: Frame, store: PatchStore, stack: ExitStack
) -> Target:
    """Return files to be repaired that are laid out as ``frame`` knows, whatever they say."""
    root = path if path.is_dir() else path.parent
    folder = Folder(root, blobs_of(root))
    stack.callback(folder.close)
    views = manifest.views()
    images, places = {}, {}
    for file in frame.layout.files:
        name = frame.names[file.name]
        present = os.path.lexists(root / name)
        one = not path.is_dir() and name == path.name and folder.blobs is None
        opened = (folder.adopt(path) if one else folder.open(name)) if present else None
        image = Image(name, opened, file.size, store)
        images[name] = image
        for number, start in file.tensors:
            places[number] = _place(number, views[number], manifest, image, start)
    return Target(root, images, places, {}, frame)


def _from_checkpoint(checkpoint: Checkpoint, manifest: Manifest, store: PatchStore) -> Target:
    images = {file.name: Image(file.name, file, file.size, store) for file in checkpoint.files}
    matched = match_names(checkpoint, manifest).matched
    numbers, views = manifest.numbers, manifest.views()
    places: dict[int, Place] = {}
    readable: dict[int, TensorView] = {}
    for tensor in checkpoint.tensors:
        for name in matched.get(tensor.name, ())[:1]:
            view = views[numbers[name]]
            if (view.dtype, view.shape) != (tensor.dtype, tensor.shape):
                continue
            if isinstance(tensor.source, FileRange):
                image = images[tensor.source.file.name]
                number = numbers[name]
                places[number] = _place(number, view, manifest, image, tensor.source.start)
            else:
                readable[numbers[name]] = replace(view, source=tensor.source, shard=tensor.shard)
    root = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    return Target(root, images, places, readable, frame=None)


def _place(number: int, view: TensorView, manifest: Manifest, image: Image, start: int) -> Place:
    source = ImageRange(image, start)
    seen = replace(view, shard=image.name, offset=start, source=source)
    return Place(number, view.name, manifest.document.tensors[view.name], seen, image, start)


def tensors_of(target: Target) -> Iterator[TensorView]:
    """Yield every tensor that can be read, file by file."""
    places = sorted(target.places.values(), key=lambda p: (p.image.name, p.start))
    yield from (place.view for place in places)
    yield from target.readable.values()
