"""What a policy can say; its keys are these fields with hyphens. Reference: docs/gate.md."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

import msgspec

from weightguard.catalogue import Severity, SeverityLabel
from weightguard.drift import matches
from weightguard.errors import WeightguardError
from weightguard.finding import Finding

FormatName: TypeAlias = Literal["safetensors", "gguf", "torch", "onnx"]
Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Globs: TypeAlias = tuple[Text, ...]
SomeGlobs: TypeAlias = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0)] | Text
Severities: TypeAlias = dict[str, SeverityLabel]

_UNITS = {
    unit + "B": factor
    for power, letter in enumerate(("", "k", "M", "G", "T"))
    for unit, factor in ((letter, 1000**power), (f"{letter.upper()}i", 1024**power))
    if unit != "i"
}


class PolicyError(WeightguardError):
    """A policy cannot be found, read or understood; the message names file and key."""


class UnusableError(PolicyError):
    """What stands at ``keys`` of a policy cannot be used; ``words`` go on from the key's name."""

    def __init__(self, keys: tuple[str, ...], words: str):
        super().__init__(f"{'.'.join(keys)} {words}")
        self.keys, self.words = keys, words


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A table of the file."""


class TensorRules(_Table, frozen=True):
    """Rules for the tensors whose names match a glob; later tables win over earlier ones."""

    tensors: SomeGlobs
    ignore: Globs = ()
    severity: Severities = {}


class Rules(_Table, frozen=True):
    """Which rules count, how grave they are, and exceptions for some tensors."""

    select: Globs = ()
    ignore: Globs = ()
    severity: Severities = {}
    tensor: tuple[TensorRules, ...] = ()


class Allow(_Table, frozen=True):
    """Formats and dtypes that may be; all, where the key is missing."""

    formats: tuple[FormatName, ...] | None = None
    dtypes: Globs | None = None


class Limits(_Table, frozen=True):
    """Greatest sizes: of one file, of all files, and the greatest number of tensors."""

    file_size: Size | None = None
    total_size: Size | None = None
    tensors: Annotated[int, msgspec.Meta(ge=0)] | None = None


class ManifestRule(_Table, frozen=True):
    """Where the manifest is; ``required`` false compares where there is one."""

    path: Text
    required: bool = True


class SignatureRule(_Table, frozen=True):
    """By whom the checkpoint's folder must be signed: one of key, certificates, identity.

    Files are relative to the policy; ``path`` is the signature's, ``model.sig`` in the
    checkpoint's folder if not given.
    """

    required: bool = True
    path: Text | None = None
    public_key: Text | None = None
    certificates: SomeGlobs | None = None
    identity: Text | None = None
    identity_provider: Text | None = None


class CalibrationRule(_Table, frozen=True):
    """Whether the manifest must hold a calibration."""

    required: bool = True


class SuperWeightRule(_Table, frozen=True):
    """The published model whose super weights the checkpoint must have."""

    lineage: Text


class DriftRule(_Table, frozen=True):
    """The base checkpoint, relative to the policy, and how far the checkpoint may be from it."""

    base: Text
    max_change: Annotated[float, msgspec.Meta(ge=0)] | None = None
    changed: Globs = ("*",)
    replaced: Globs = ()
    added: Globs = ()
    removed: Globs = ()


class Policy(_Table, frozen=True):
    """All of a policy; a table that is missing demands nothing."""

    version: Literal[1] = 1
    fail_on: SeverityLabel = "error"
    rules: Rules = Rules()
    allow: Allow = Allow()
    limits: Limits = Limits()
    manifest: ManifestRule | None = None
    signature: SignatureRule | None = None
    calibration: CalibrationRule | None = None
    super_weights: SuperWeightRule | None = None
    drift: DriftRule | None = None

    def judge(self, found: Finding) -> Finding | None:
        """Return ``found`` with the severity that this policy gives it; None where ignored.

        What ends the reading (a report that is not complete) is not to be passed through here.
        """
        severity = _longest(self.rules.severity, found.rule)
        for exception in self.rules.tensor:
            name = found.location.tensor
            if name is None or not matches(name, exception.tensors):
                continue
            if found.rule.startswith(tuple(code.upper() for code in exception.ignore)):
                return None
            severity = _longest(exception.severity, found.rule) or severity
        return found if severity is None else msgspec.structs.replace(found, severity=severity)

    @property
    def least_failing(self) -> Severity:
        """The least severity that fails the gate."""
        return Severity[self.fail_on.upper()]


def size_in_bytes(size: int | str) -> int:
    """Return a size given as bytes or as text such as "4.5 GB" or "512 MiB".

    Raises ValueError for anything else.
    """
    if isinstance(size, int):
        return size
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?) ?([kMGTKi]{0,2}B)", size)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{size[:100]!r} is no size such as 5000000, '4.5 GB' or '512 MiB'")
    return int(float(found[1]) * _UNITS[found[2]])


def _longest(severities: Severities, code: str) -> SeverityLabel | None:
    """Return the severity of the longest key that is a beginning of ``code``."""
    fitting = [key for key in severities if code.startswith(key.upper())]
    return severities[max(fitting, key=len)] if fitting else None
