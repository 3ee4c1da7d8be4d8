"""Is the signature genuine, and are the folder's files exactly those that it lists?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from weightguard.catalogue import Severity
from weightguard.checkpoint.files import CheckpointFile, Folder
from weightguard.checkpoint.hugging_face import blobs_of
from weightguard.checkpoint.names import shown
from weightguard.checksums import feed
from weightguard.errors import CheckpointError, WeightguardError
from weightguard.finding import Finding, finding, ordered
from weightguard.progress import Meter, Progress
from weightguard.scan.digest import new_hasher
from weightguard.scan.stream import default_threads
from weightguard.signing.library import Judge, SignedList, SignedRange, judge
from weightguard.signing.parties import Trusted

SIGNATURE_NAME = "model.sig"
"""The library's default name, too."""

GIT_NAMES = frozenset({".git", ".gitattributes", ".github", ".gitignore"})
"""Left out by the library unless told otherwise."""

MAX_ENTRIES = 1_000_000
"""Files and folders that a model's folder may hold."""

MAX_EXTRA_FINDINGS = 100
"""Unsigned files reported one by one."""


def verify_signature(
    folder: str | os.PathLike[str],
    signer: Trusted,
    *,
    signature: str | os.PathLike[str] | None = None,
    must_cover: Iterable[str | os.PathLike[str]] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Finding, ...]:
    """Return how ``folder`` falls short of a signature by ``signer``: nothing means not at all.

    ``signature`` is ``model.sig`` in the folder by default. WG501 it is missing, WG502 no
    signature, WG503 false, WG504 by somebody else; WG505 it does not cover a path of
    ``must_cover``, such as a manifest; WG506, WG507, WG508 a file was changed, is missing, is
    not signed. Each is critical, and so is whatever keeps a file from being read: a proof that was
    demanded and is not there fails. Links are followed inside the folder only. Raises
    WeightguardError where the extra ``sign`` is missing, a key cannot be used, or ``folder`` is
    none.
    """
    found = _shortcomings(Path(folder), judge(signer), signature, must_cover, threads, progress)
    critical = Severity.CRITICAL.label
    return ordered(msgspec.structs.replace(one, severity=critical) for one in found)


def _shortcomings(
    root: Path,
    judged: Judge,
    signature: str | os.PathLike[str] | None,
    must_cover: Iterable[str | os.PathLike[str]],
    threads: int | None,
    progress: Progress | None,
) -> Iterable[Finding]:
    if not root.is_dir():
        raise WeightguardError(f"{str(root)!r} is no folder, and a signature is of a folder.")
    opened = Folder(root, blobs_of(root))
    path = root / SIGNATURE_NAME if signature is None else Path(signature)
    try:
        if not os.path.lexists(path):
            words = f"there is no signature {shown(str(path))}"
            return (finding("WG501", words, file=path.name),)
        file = opened.open(SIGNATURE_NAME) if signature is None else opened.adopt(path)
        signed = judged(file)
        if isinstance(signed, Finding):
            return (signed,)
        examination = _Examination(opened, signed, inside(root, path))
        return [*_uncovered(root, must_cover, signed), *examination.run(threads, progress)]
    except CheckpointError as error:
        return (error.finding,)
    finally:
        opened.close()


def inside(root: Path, path: Path) -> str | None:
    """Return the name in the folder of what a path means, its own links left alone, or None."""
    try:
        return (path.parent.resolve() / path.name).relative_to(root.resolve()).as_posix()
    except ValueError:
        return None


def _uncovered(
    root: Path, must_cover: Iterable[str | os.PathLike[str]], signed: SignedList
) -> Iterator[Finding]:
    for path in map(Path, must_cover):
        name = inside(root, path)
        if name is None:
            words = f"{shown(str(path))} lies outside the signed folder"
            yield finding("WG505", words, file=path.name)
        elif name not in signed.files:
            yield finding("WG505", f"the signature does not list {shown(name)}", file=name)


class _Examination:
    """The files of a folder beside those that a genuine signature lists."""

    def __init__(self, folder: Folder, signed: SignedList, signature: str | None):
        self._folder, self._signed = folder, signed
        self._left_out = signed.ignored | GIT_NAMES | ({signature} if signature else set())

    def run(self, threads: int | None, progress: Progress | None) -> Iterator[Finding]:
        names = sorted(self._signed.files)
        meter = Meter(sum(map(self._size, names)), progress)
        with ThreadPoolExecutor(threads or default_threads()) as pool:
            for found in pool.map(lambda name: self._check(name, meter), names):
                if found is not None:
                    yield found
        yield from self._extras()

    def _size(self, name: str) -> int:
        try:
            return self._folder.resolve(name).stat().st_size
        except (CheckpointError, OSError):
            return 0  # told when the file is opened

    def _check(self, name: str, meter: Meter) -> Finding | None:
        try:
            file = self._folder.open(name)
        except CheckpointError as error:
            if error.finding.rule == "WG122" and not os.path.lexists(self._folder.root / name):
                return finding("WG507", f"the signed file {shown(name)} is missing", file=name)
            return error.finding
        try:
            return _compare(file, self._signed.files[name], meter)
        except CheckpointError as error:
            return error.finding
        finally:
            self._folder.release(file)

    def _extras(self) -> Iterator[Finding]:
        count = 0
        for name, entry in entries(self._folder.root, self._left_out):
            if name in self._signed.files or (self._signed.by_ranges and _is_empty(entry)):
                continue
            count += 1
            if count <= MAX_EXTRA_FINDINGS:
                told = name.encode("utf-8", "backslashreplace").decode()
                yield finding("WG508", f"{shown(name)} is not signed", file=told)
        if count > MAX_EXTRA_FINDINGS:
            words = f"{count - MAX_EXTRA_FINDINGS} more files of the folder are not signed"
            yield finding("WG508", words, evidence={"count": count})


def _is_empty(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and not entry.stat(follow_symlinks=False).st_size


def entries(root: Path, left_out: frozenset[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield everything below ``root`` but folders, by name; links are not followed."""
    pending, seen = [""], 0
    while pending:
        prefix = pending.pop()
        with os.scandir(root / prefix) as listing:
            for entry in listing:
                seen += 1
                if seen > MAX_ENTRIES:
                    raise WeightguardError(f"{str(root)!r} holds more than {MAX_ENTRIES} files.")
                name = prefix + entry.name
                if name in left_out:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(name + "/")
                else:
                    yield name, entry


def _compare(file: CheckpointFile, ranges: Iterable[SignedRange], meter: Meter) -> Finding | None:
    name, position = file.name, 0
    for part in sorted(ranges, key=lambda r: r.start):
        end = file.size if part.end is None else part.end
        if part.start != position or not position <= end <= file.size:
            words = f"{shown(name)} has {file.size} bytes, which are not those that were signed"
            return finding("WG506", words, file=name)
        hasher = _hasher(part.algorithm)
        if hasher is None:
            words = f"{shown(name)} is signed by the unknown digest {shown(part.algorithm)}"
            return finding("WG502", words, file=name)
        feed(file, position, end - position, hasher.update, meter)
        if hasher.digest() != part.digest:
            words = f"{shown(name)} is not the file that was signed: its {part.algorithm} differs"
            evidence = {"expected": part.digest.hex(), "actual": hasher.hexdigest()}
            offset = None if part.end is None else position
            return finding("WG506", words, file=name, offset=offset, evidence=evidence)
        position = end
    if position != file.size:
        words = f"{shown(name)} has {file.size} bytes, of which {position} were signed"
        return finding("WG506", words, file=name, offset=position)
    return None


def _hasher(algorithm: str) -> Any:
    match algorithm:
        case "sha256":
            return hashlib.sha256()
        case "blake2b":
            return hashlib.blake2b()
        case "blake3":
            return new_hasher("blake3")
    return None
