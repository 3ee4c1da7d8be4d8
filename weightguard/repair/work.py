"""The damage of one checkpoint, found and healed by all that may be used for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from weightguard.audit import verify
from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.remote import is_remote, open_remote
from weightguard.errors import CheckpointError, ManifestError, WeightguardError
from weightguard.finding import Report
from weightguard.manifest import Manifest
from weightguard.parity import Parity
from weightguard.progress import Meter, Progress
from weightguard.repair.container import restore_containers
from weightguard.repair.damage import Damage, find_damage
from weightguard.repair.folders import (
    copy_rest,
    new_checkpoint,
    refuse_inside,
    write_images,
)
from weightguard.repair.frame import frame_of_copy, frame_of_parity
from weightguard.repair.golden import GoldenCopy
from weightguard.repair.heal import GOLDEN, PARITY, SOURCES, Healer
from weightguard.repair.image import Image, PatchStore
from weightguard.repair.outcome import ContainerRepair, RepairOutcome, Shortfall, TensorRepair
from weightguard.repair.target import Target, framed_target, open_target, tensors_of


@dataclass(frozen=True, slots=True)
class Means:
    """What a repair may use: a golden copy's path or URL, the manifest's parity, threads."""

    golden: str | None = None
    parity: bool = True
    threads: int | None = None
    progress: Progress | None = None


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
    """Turn an OSError into a WeightguardError that begins with ``what``."""
    try:
        yield
    except OSError as error:
        raise WeightguardError(
            f"{what}: {error.strerror or error}. Check the free space and the permissions."
        ) from error


class Repair:
    """The damage of one checkpoint healed in images of its files; they are open within ``with``.

    ``readable`` is False where the checkpoint cannot be opened, and neither parity nor a golden
    copy knows its files. ``output`` is where a new checkpoint is to be written, if one is.
    """

    target: Target

    def __init__(self, path: Path, manifest: Manifest, means: Means, output: Path | None = None):
        self._path, self._manifest, self._means = path, manifest, means
        self._output = output
        self._stack = ExitStack()
        self._damages: dict[int, Damage] = {}
        self._containers: dict[str, int] = {}
        self._kept: set[int] = set()
        self._golden: GoldenCopy | None = None
        self._shortfall: Shortfall | None = None
        self._unused: str | None = None
        self._copied: tuple[tuple[str, ...], int] = ((), 0)
        self.readable = self.damaged = self.changed = False

    def __enter__(self) -> Repair:
        try:
            with said("cannot keep what was healed in the folder for temporary files"):
                self._heal()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _heal(self) -> None:
        parity = self._open_parity() if self._means.parity else None
        target = self._open_target(parity)
        if target is None:
            return
        self.target, self.readable = target, True
        self._refuse_inside(sum(i.stored.file is not None for i in self.target.images.values()))
        tensors = [*tensors_of(self.target)]
        meter = Meter(sum(tensor.nbytes for tensor in tensors), self._means.progress)
        self._damages = find_damage(tensors, self._manifest, self._means.threads, meter)
        healed = self._heal_tensors(parity)
        self._containers = restore_containers(
            self.target, self._manifest.document.files, self._damages, healed
        )
        images = self.target.images.values()
        patched = {patch.owner for image in images for patch in image.patches}
        self._kept = {number for number in healed if number in patched}
        self.changed = bool(self.changed_images())
        self.damaged = bool(self._damages) or self._lacks_tensors(target)

    def _open_parity(self) -> Parity | None:
        try:
            parity = self._manifest.open_parity()
        except ManifestError as error:
            if self._means.golden is None:
                raise
            self._unused = str(error)
            return None
        if parity is not None:
            self._stack.callback(parity.sidecar.close)
        return parity

    def _open_target(self, parity: Parity | None) -> Target | None:
        path, manifest, stack = self._path, self._manifest, self._stack
        store = PatchStore()
        stack.callback(store.close)
        frame = None if parity is None else frame_of_parity(path, parity)
        target = None
        with contextlib.suppress(CheckpointError):
            target = open_target(path, manifest, frame, store, stack)
        enough = target is not None and (target.frame or not self._lacks_tensors(target))
        if self._means.golden is None or enough:
            return target
        golden = self._open_golden(self._means.golden)
        lent = frame_of_copy(path, golden.checkpoint, manifest)
        return target if lent is None else framed_target(path, manifest, lent, store, stack)

    def _lacks_tensors(self, target: Target) -> bool:
        there = len(target.places) + len(target.readable)
        return there < len(self._manifest.document.tensors)

    def _refuse_inside(self, files: int) -> None:
        if self._output is not None and files > 1 and not self._path.is_dir():
            refuse_inside(self._output, self._path)

    def changed_images(self) -> list[Image]:
        """Return the files that are to be written."""
        return [i for i in self.target.images.values() if i.changed and self._is_known(i.name)]

    def _is_known(self, name: str) -> bool:
        # a missing file of which nothing was restored stays missing
        image = self.target.images[name]
        return image.stored.file is not None or bool(image.patches) or name in self._containers

    def _heal_tensors(self, parity: Parity | None) -> set[int]:
        healer = Healer(self.target, self._manifest, self._damages)
        healer.by_residues()
        if parity is not None and not healer.whole:
            healer.by_parity(parity)
        if self._means.golden is not None and not healer.whole:
            golden = self._open_golden(self._means.golden)
            healer.by_copy(golden)
            golden.require_some_right()
            if parity is not None and not healer.whole:
                healer.by_parity(parity)
        if parity is not None:
            self._shortfall = healer.shortfall(parity)
        return healer.settle()

    def _open_golden(self, golden: str) -> GoldenCopy:
        if self._golden is None:
            opened = open_remote(golden) if is_remote(golden) else open_checkpoint(golden)
            self._golden = GoldenCopy(self._stack.enter_context(opened), golden, self._manifest)
        return self._golden

    def write_new(self, output: Path) -> RepairOutcome:
        """Write the healed files, and what lies beside them, to ``output``; verify, then name it.

        Raises OSError.
        """
        images = {n: image for n, image in self.target.images.items() if self._is_known(n)}
        self._refuse_inside(len(images))
        folder = self._path.is_dir()
        single = not folder and len(images) == 1
        with new_checkpoint(output, single=single) as work:
            named = dict(zip([output.name], images.values(), strict=True)) if single else images
            write_images(named, work)
            if folder:
                copied, left = copy_rest(self._path, work, images)
                self._copied = (tuple(copied), left)
            inside = output.name if single else "" if folder else self._path.name
            report = self.verify(work / inside)
        shown = msgspec.structs.replace(report, checkpoint=str(output / (inside * (not single))))
        return replace(self.outcome(shown), output=str(output))

    def verify(self, path: Path) -> Report:
        """Return the report of the checkpoint at ``path`` beside the manifest."""
        return verify(
            path, self._manifest, threads=self._means.threads, progress=self._means.progress
        )

    def outcome(self, report: Report) -> RepairOutcome:
        """Return what was healed, with the report of the result."""
        golden = self._golden
        return RepairOutcome(
            report=report,
            tensors=tuple(self._tensor_repairs()),
            containers=tuple(self._container_repairs()),
            copied=self._copied[0],
            left_out=self._copied[1],
            fetched=0 if golden is None else golden.fetched,
            refused=() if golden is None else tuple(golden.refused),
            shortfall=self._shortfall,
            unused=self._unused,
        )

    def _container_repairs(self) -> Iterator[ContainerRepair]:
        if not self._containers:
            return
        frame, files = self.target.frame, self._manifest.document.files
        assert frame is not None, "it knew the containers"
        source: Literal["parity", "golden copy"] = PARITY if frame.proven else GOLDEN
        for name, size in self._containers.items():
            yield ContainerRepair(name, size, source, frame.proven or name in files)

    def _tensor_repairs(self) -> Iterator[TensorRepair]:
        for number in sorted(self._kept):
            place, healed = self.target.places[number], self._damages[number].healed
            blocks = {s: len(healed[s]) for s in SOURCES if healed.get(s)}
            yield TensorRepair(place.name, place.image.name, blocks)
