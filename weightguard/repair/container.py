"""The bytes of a file that are no tensor's: headers, metadata, padding, and how long it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from weightguard.layout import Gap
from weightguard.manifest import FileRecord
from weightguard.repair.damage import Damage
from weightguard.repair.frame import Frame
from weightguard.repair.image import Image
from weightguard.repair.target import Target
from weightguard.scan.digest import BLOCK_BYTES, new_hasher


def restore_containers(
    target: Target,
    files: Mapping[str, FileRecord],
    damages: Mapping[int, Damage],
    healed: Iterable[int],
) -> dict[str, int]:
    """Patch what is known of the files beside their tensors; return the bytes that differed.

    ``files`` are the manifest's records of whole files. A file that takes no part is left as it
    is, in length too: where no tensor of it is as attested, it is another model's, and where a
    tensor that was cut off stays lost, a longer file would only hide that.
    """
    frame = target.frame
    if frame is None:
        for image in target.images.values():
            _leave(image)
        return {}
    lost = set(damages) - set(healed)
    restored = {}
    pieces: dict[str, list[Gap]] = {}
    for gap in frame.gaps:
        pieces.setdefault(frame.names[gap.file], []).append(gap)
    for image in target.images.values():
        lent = pieces.get(image.name, [])
        if not _vouched_for(target, image, lost):
            image.drop(None)
            _leave(image)
        elif not frame.proven and lent and not _is_whole(target, image, lost):
            _forget(image)
        else:
            changed = sum(_restore(image, frame, gap) for gap in lent)
            changed += max(0, image.stored.size - image.size)
            if not frame.proven and lent and not _is_recorded(image, files):
                _forget(image)
            elif changed:
                restored[image.name] = changed
    return restored


def _is_whole(target: Target, image: Image, lost: set[int]) -> bool:
    return not any(p.image is image and p.number in lost for p in target.places.values())


def _is_recorded(image: Image, files: Mapping[str, FileRecord]) -> bool:
    """Return whether a file will have the digest that the manifest records of it, if any."""
    record = files.get(image.name)
    if record is None:
        return True
    hasher, buffer = new_hasher("sha256"), memoryview(bytearray(BLOCK_BYTES))
    for offset in range(0, image.size, BLOCK_BYTES):
        piece = buffer[: min(BLOCK_BYTES, image.size - offset)]
        image.read_into(offset, piece)
        hasher.update(piece)
    return (image.size, hasher.hexdigest()) == (record.size, record.sha256)


def _vouched_for(target: Target, image: Image, lost: set[int]) -> bool:
    """Return whether the layout is this file's, and every byte of it beyond the old end known."""
    places = [place for place in target.places.values() if place.image is image]
    if not places:
        # an index has no tensor: its folder's other files speak for it
        return any(number not in lost for number in target.places)
    cut = any(p.number in lost and p.start + p.view.nbytes > image.stored.size for p in places)
    filled = [place for place in places if place.view.nbytes]
    return not cut and (not filled or any(place.number not in lost for place in filled))


def _restore(image: Image, frame: Frame, gap: Gap) -> int:
    """Patch one gap where it differs, a block at a time; return the bytes that differed."""
    changed = 0
    for first in range(gap.start, gap.end, BLOCK_BYTES):
        length = min(BLOCK_BYTES, gap.end - first)
        expected = frame.read(gap, first, length)
        here = bytearray(length)
        image.read_into(first, memoryview(here))
        missing = max(0, first + length - max(first, image.stored.size))
        if here != expected or missing:
            image.patch(first, expected, None)
            differing = sum(a != b for a, b in zip(here, expected, strict=True))
            changed += max(differing, missing)
    return changed


def _forget(image: Image) -> None:
    """Let the file be as it is: what would make it another is not whole, or not attested."""
    for owner in {patch.owner for patch in image.patches}:
        image.drop(owner)
    image.size = image.stored.size


def _leave(image: Image) -> None:
    """Let the file keep its length; patches beyond its end are dropped with their tensors."""
    for patch in image.patches:
        if patch.offset + patch.length > image.stored.size:
            image.drop(patch.owner)
    image.size = image.stored.size
