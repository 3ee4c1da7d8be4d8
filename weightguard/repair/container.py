"""The bytes of a file that are no tensor's: headers, metadata, padding, and how long it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from weightguard.parity import Parity
from weightguard.repair.damage import Damage
from weightguard.repair.image import Image
from weightguard.repair.target import Target
from weightguard.scan.digest import BLOCK_BYTES


def restore_containers(
    target: Target, parity: Parity | None, damages: Mapping[int, Damage], healed: Iterable[int]
) -> dict[str, int]:
    """Patch what is known of the files beside their tensors; return the bytes that differed.

    A file that takes no part is left as it is, in length too: where no tensor of it is as
    attested, it is another model's, and where a tensor that was cut off stays lost, a longer file
    would only hide that.
    """
    if parity is None or not target.rebuilds:
        _keep_sizes(target.images.values())
        return {}
    lost = set(damages) - set(healed)
    restored = {}
    pieces = _pieces(target, parity)
    for image in target.images.values():
        if not _vouched_for(target, image, lost):
            image.drop(None)
            _leave(image)
            continue
        changed = sum(_restore(image, parity, *piece) for piece in pieces.get(image.name, ()))
        changed += max(0, image.stored.size - image.size)
        if changed:
            restored[image.name] = changed
    return restored


def _pieces(target: Target, parity: Parity) -> dict[str, list[tuple[int, int, int]]]:
    """Return, for each image, (start, end, place among the kept bytes) of its gaps."""
    names = {
        file.name: image.name
        for file, image in zip(parity.layout.files, target.images.values(), strict=True)
    }
    pieces: dict[str, list[tuple[int, int, int]]] = {}
    for gap, at in parity.gaps:
        pieces.setdefault(names[gap.file], []).append((gap.start, gap.end, at))
    return pieces


def _vouched_for(target: Target, image: Image, lost: set[int]) -> bool:
    """Return whether the layout is this file's, and every byte of it beyond the old end known."""
    places = [place for place in target.places.values() if place.image is image]
    if not places:
        # an index has no tensor: its folder's other files speak for it
        return any(number not in lost for number in target.places)
    cut = any(p.number in lost and p.start + p.view.nbytes > image.stored.size for p in places)
    filled = [place for place in places if place.view.nbytes]
    return not cut and (not filled or any(place.number not in lost for place in filled))


def _restore(image: Image, parity: Parity, start: int, end: int, at: int) -> int:
    """Patch one gap where it differs, a block at a time; return the bytes that differed."""
    changed = 0
    for first in range(start, end, BLOCK_BYTES):
        length = min(BLOCK_BYTES, end - first)
        expected = parity.gap_bytes(at + first - start, length)
        here = bytearray(length)
        image.read_into(first, memoryview(here))
        missing = max(0, min(first + length, end) - max(first, image.stored.size))
        if here != expected or missing:
            image.patch(first, expected, None)
            differing = sum(a != b for a, b in zip(here, expected, strict=True))
            changed += max(differing, missing)
    return changed


def _keep_sizes(images: Iterable[Image]) -> None:
    for image in images:
        _leave(image)


def _leave(image: Image) -> None:
    """Let the file keep its length; patches beyond its end are dropped with their tensors."""
    for patch in image.patches:
        if patch.offset + patch.length > image.stored.size:
            image.drop(patch.owner)
    image.size = image.stored.size
