"""repair(): find what is damaged, heal what can be proved, write it down, verify the result."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from weightguard.atomic import remove_abandoned
from weightguard.audit import verify, verify_opened
from weightguard.catalogue import Severity
from weightguard.checkpoint import open_checkpoint
from weightguard.checkpoint.remote import is_remote, open_remote
from weightguard.checkpoint.unfinished import JOURNAL
from weightguard.errors import CheckpointError, WeightguardError
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
    refuse_target,
    write_images,
)
from weightguard.repair.golden import GoldenCopy
from weightguard.repair.heal import SOURCES, Healer
from weightguard.repair.image import Image, PatchStore
from weightguard.repair.inplace import (
    JournalMisfitError,
    NoRoomError,
    apply_journal,
    check_writable,
)
from weightguard.repair.journal import locked, remove_journal, write_journal
from weightguard.repair.outcome import ContainerRepair, RepairOutcome, TensorRepair
from weightguard.repair.target import Target, open_target, tensors_of


@dataclass(frozen=True, slots=True)
class Means:
    """What a repair may use: a golden copy's path or URL, the manifest's parity, threads."""

    golden: str | None = None
    parity: bool = True
    threads: int | None = None
    progress: Progress | None = None


def repair(
    path: str | os.PathLike[str],
    manifest: Manifest,
    output: str | os.PathLike[str],
    means: Means = Means(),
) -> RepairOutcome:
    """Write the checkpoint at ``path``, healed, to ``output``, which must not be there.

    A folder becomes a folder with all that lies in it, a single file a file, and a file that names
    others (an index, a part of a split model) a folder with the files it is made of. Nothing is
    written where something is damaged and nothing can be healed. Raises WeightguardError where
    the job cannot be done: then nothing is at ``output``.
    """
    path, output = Path(path), Path(output)
    refuse_target(output, path)
    with _Repair(path, manifest, means, output) as work:
        if not work.readable or (work.damaged and not work.changed):
            return work.outcome(work.verify(path))
        with _said(f"cannot write {str(output)!r}"):
            return work.write_new(output)


def repair_in_place(
    path: str | os.PathLike[str],
    manifest: Manifest,
    means: Means = Means(),
) -> RepairOutcome:
    """Heal the checkpoint at ``path`` where it lies, after a journal of all changes is on disk.

    Finishes a repair of the same weights that was interrupted, unless its files were replaced
    since. Raises WeightguardError where the job cannot be done, or while another repair is at work
    in the folder; then nothing is written, save where the message says that a journal is kept.
    """
    path = Path(path)
    root = path if path.is_dir() else path.parent
    weights = manifest.document.weights
    with locked(root):
        remove_abandoned(root, re.escape(JOURNAL))
        resumed, discarded = _settle_journal(root, path, manifest, means)
        with _Repair(path, manifest, means) as work:
            if work.changed:
                images = work.changed_images()
                check_writable(root, [image.name for image in images])
                with _said(f"cannot write the journal into {str(root)!r}; nothing was changed"):
                    write_journal(root, images, weights)
        if work.changed:
            unfinished = "repair --in-place goes on from its journal when it is run again"
            with _said(f"cannot write into {str(root)!r}; {unfinished}"):
                _apply_new(root, weights)
        written = str(path) if work.changed or resumed else None
        outcome = work.outcome(work.verify(path))
        return replace(outcome, output=written, resumed=resumed, discarded=discarded)


def _settle_journal(root: Path, path: Path, manifest: Manifest, means: Means) -> tuple[bool, bool]:
    """Finish what a journal in ``root`` holds, or discard it; return which of them was done.

    It is discarded where it is not of the files that are there and they are as attested.
    """
    with _said(f"cannot finish the interrupted repair in {str(root)!r}; its journal is kept"):
        try:
            return apply_journal(root, manifest.document.weights), False
        except JournalMisfitError as misfit:
            if not _is_sound(path, manifest, misfit.files, means):
                raise
        remove_journal(root)
    return False, True


def _is_sound(path: Path, manifest: Manifest, files: frozenset[str], means: Means) -> bool:
    """Return whether ``files`` are the checkpoint's, and all of it is as the manifest says."""
    try:
        with open_checkpoint(path) as checkpoint:
            opened = {file.name for file in checkpoint.files}
            report = verify_opened(checkpoint, manifest, threads=means.threads)
    except CheckpointError:
        return False
    graver = {found.rule for found in report.at_least(Severity.ERROR)}
    return report.complete and files <= opened and graver <= {"WG123"}


def _apply_new(root: Path, weights: str) -> None:
    try:
        apply_journal(root, weights)
    except NoRoomError:
        remove_journal(root)
        raise


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WeightguardError(
            f"{what}: {error.strerror or error}. Check the free space and the permissions."
        ) from error


class _Repair:
    """The damage of one checkpoint healed in images of its files; they are open within ``with``.

    ``readable`` is False where the checkpoint cannot be opened and no parity knows its files.
    ``output`` is where a new checkpoint is to be written, if one is.
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
        self._copied: tuple[tuple[str, ...], int] = ((), 0)
        self.readable = self.damaged = self.changed = False

    def __enter__(self) -> _Repair:
        try:
            with _said("cannot keep what was healed in the folder for temporary files"):
                self._heal()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _heal(self) -> None:
        parity = self._manifest.open_parity() if self._means.parity else None
        if parity is not None:
            self._stack.callback(parity.sidecar.close)
        store = PatchStore()
        self._stack.callback(store.close)
        try:
            self.target = open_target(self._path, self._manifest, parity, store, self._stack)
        except CheckpointError:
            return
        self.readable = True
        self._refuse_inside(sum(i.stored.file is not None for i in self.target.images.values()))
        tensors = [*tensors_of(self.target)]
        meter = Meter(sum(tensor.nbytes for tensor in tensors), self._means.progress)
        self._damages = find_damage(tensors, self._manifest, self._means.threads, meter)
        healed = self._heal_tensors(parity)
        self._containers = restore_containers(self.target, parity, self._damages, healed)
        images = self.target.images.values()
        patched = {patch.owner for image in images for patch in image.patches}
        self._kept = {number for number in healed if number in patched}
        self.changed = bool(self.changed_images())
        missing = len(self.target.places) + len(self.target.readable)
        self.damaged = bool(self._damages) or missing < len(self._manifest.document.tensors)

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
            self._golden = self._open_golden(self._means.golden)
            healer.by_copy(self._golden)
            self._golden.require_some_right()
            if parity is not None and not healer.whole:
                healer.by_parity(parity)
        return healer.settle()

    def _open_golden(self, golden: str) -> GoldenCopy:
        opened = open_remote(golden) if is_remote(golden) else open_checkpoint(golden)
        return GoldenCopy(self._stack.enter_context(opened), golden, self._manifest)

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
            containers=tuple(ContainerRepair(n, size) for n, size in self._containers.items()),
            copied=self._copied[0],
            left_out=self._copied[1],
            fetched=0 if golden is None else golden.fetched,
            refused=() if golden is None else tuple(golden.refused),
        )

    def _tensor_repairs(self) -> Iterator[TensorRepair]:
        for number in sorted(self._kept):
            place, healed = self.target.places[number], self._damages[number].healed
            blocks = {s: len(healed[s]) for s in SOURCES if healed.get(s)}
            yield TensorRepair(place.name, place.image.name, blocks)


__all__ = ["Means", "repair", "repair_in_place"]
