"""Where results may go: never over weights, nor over anything that is to be checked.

Asked before the work, so that nobody waits an hour to learn of a typing error.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from weightguard.errors import CheckpointError, WeightguardError
from weightguard_cli.output import STANDARD_OUTPUT

_REPORT_HEAD = 4096
_MAX_JSON_BYTES = 256 << 20
_VERDICTS = (
    rb"SOUND|EQUAL|EMPTY|SUSPECT|DIFFERENT|DAMAGED|UNSUPPORTED|UNREADABLE|UNTRUSTED|UNFINISHED"
    rb"|REFUSED|SAME|TOO FAR|HEALED|INTACT|PARTLY HEALED|NOT HEALED"
)
_REPORT = re.compile(
    rb"(" + _VERDICTS + rb"): "
    rb"|(<!DOCTYPE html>\n)?<!-- weightguard report -->\n"
    rb"|<\?xml [^>]{1,80}>\s*<testsuites name=\"weightguard "
    rb'|\{\s*"\$schema": "[^"]{1,200}/sarif-schema-2\.1\.0\.json",\s*"runs": \[\s*\{\s*'
    rb'"automationDetails": \{\s*"id": "weightguard/'
)
_JSON_REPORT = re.compile(r"weightguard-(report|diff|repair)-v\d{1,9}")


class _Schema(msgspec.Struct):
    schema: str = ""


def check_target(target: Path | None, *inputs: Path) -> None:
    """Raise WeightguardError when ``target`` cannot be written, or is one of the inputs."""
    if target is None or target == STANDARD_OUTPUT:
        return
    for path in inputs:
        if target.exists() and path.exists() and target.samefile(path):
            raise WeightguardError(f"-o {str(target)!r} would overwrite what is to be checked.")
    folder = target.parent
    if target.is_dir():
        raise WeightguardError(f"cannot write {str(target)!r}: it is a folder. Name a file in it.")
    if not folder.is_dir():
        raise WeightguardError(f"cannot write {str(target)!r}: {str(folder)!r} is no folder.")


def check_report_target(target: Path | None, checkpoint: Path, *inputs: Path) -> None:
    """Raise WeightguardError also when a report would replace weights or a manifest.

    That is a file of the checkpoint, through whatever links; any file that lies beside it and is
    no earlier report; and, anywhere, what is recognised as weights, an index or a manifest.
    """
    check_target(target, checkpoint, *inputs)
    if target is None or target == STANDARD_OUTPUT or not _holds_bytes(target):
        return
    if _is_report(target):
        return
    if _belongs_to(target, checkpoint):
        raise WeightguardError(
            f"-o {str(target)!r} would overwrite a file that lies with what is to be checked. "
            "Name another file."
        )
    what = _recognised(target)
    if what is not None:
        raise WeightguardError(f"-o {str(target)!r} would overwrite {what}. Name another file.")


def check_manifest_target(target: Path, checkpoint: Path) -> None:
    """Raise WeightguardError also when a manifest would replace anything but a manifest."""
    from weightguard.manifest import refuse_replacing

    check_target(target, checkpoint)
    if target.name == "-" or (target.exists() and not target.is_file()):
        raise WeightguardError(
            f"cannot write a manifest to {str(target)!r}: name a file; its sidecar goes beside it."
        )
    refuse_replacing(target)


def _holds_bytes(target: Path) -> bool:
    """Return whether there is a regular file with something to lose."""
    try:
        status = target.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _is_report(target: Path) -> bool:
    with target.open("rb") as file:
        head = file.read(_REPORT_HEAD)
    if _REPORT.match(head):
        return b"\0" not in head
    if not head.startswith(b"{") or target.stat().st_size > _MAX_JSON_BYTES:
        return False
    try:
        schema = msgspec.json.decode(target.read_bytes(), type=_Schema).schema
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return _JSON_REPORT.fullmatch(schema) is not None


def _belongs_to(target: Path, checkpoint: Path) -> bool:
    wanted = target.stat()
    for path in _files_with(checkpoint):
        try:
            if os.path.samestat(wanted, path.stat()):
                return True
        except OSError:
            continue
    return False


def _files_with(checkpoint: Path) -> Iterator[Path]:
    """Yield what lies in the checkpoint's folder, and its own files, wherever they are."""
    from weightguard import open_checkpoint

    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    try:
        yield from folder.iterdir()
    except OSError:
        return
    try:
        with open_checkpoint(checkpoint) as opened:
            yield from [file.path for file in opened.files]
    except CheckpointError:
        return  # what cannot be read has its files in the folder all the same


def _recognised(target: Path) -> str | None:
    from weightguard.checkpoint.files import CheckpointFile
    from weightguard.checkpoint.recognise import recognise
    from weightguard.manifest import is_manifest

    file = CheckpointFile(target.resolve(), target.name)
    try:
        kind = recognise(file)
    finally:
        file.close()
    if kind is None:
        return None
    if kind != "index":
        return f"{kind} weights"
    if is_manifest(target):
        return "a manifest"
    return "a shard index" if _is_index(target) else None


def _is_index(target: Path) -> bool:
    if target.stat().st_size > _MAX_JSON_BYTES:
        return False
    try:
        return "weight_map" in json.loads(target.read_bytes())
    except (ValueError, RecursionError, TypeError):
        return False
