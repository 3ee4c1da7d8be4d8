"""WG51x and WG50x: what a policy demands of a checkpoint beyond sound weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from weightguard.checkpoint import Checkpoint
from weightguard.finding import Finding, finding
from weightguard.manifest import Manifest
from weightguard.policy.document import Policy, SignatureRule, UnusableError, size_in_bytes
from weightguard.policy.places import home_of, place_of
from weightguard.signing import (
    SIGNATURE_NAME,
    Certificate,
    KeyFileError,
    PublicKey,
    Sigstore,
    Trusted,
    verify_signature,
)
from weightguard.superweights.published import Lineage

MAX_LISTED = 16
"""Tensors and states that a finding's evidence names; counts are complete."""


def check_container(checkpoint: Checkpoint, policy: Policy) -> Iterator[Finding]:
    """Yield a finding for each limit on format, dtypes and sizes that headers alone violate."""
    formats, dtypes = policy.allow.formats, policy.allow.dtypes
    if formats is not None and checkpoint.format not in formats:
        yield finding(
            "WG513",
            f"the format is {checkpoint.format}, the policy allows {_listed(formats)}",
            evidence={"format": checkpoint.format, "allowed": list(formats)},
        )
    if dtypes is not None:
        yield from _check_dtypes(checkpoint, dtypes)
    yield from _check_sizes(checkpoint, policy)


def check_calibration(manifest: Manifest | None, policy: Policy) -> Iterator[Finding]:
    """Yield a finding where a calibrated manifest is required and there is none."""
    rule = policy.calibration
    if rule is None or not rule.required:
        return
    if manifest is None or manifest.document.calibration is None:
        words = "there is no manifest" if manifest is None else "the manifest holds no calibration"
        yield finding("WG512", words)


def check_lineage(lineages: Iterable[Lineage], policy: Policy) -> Iterator[Finding]:
    """Yield a finding where the super weights are not those of the model that is named."""
    rule = policy.super_weights
    if rule is None:
        return
    found = {lineage.base.model: lineage for lineage in lineages}
    lineage = found.get(rule.lineage)
    if lineage is None:
        others = f"; it descends from {_listed(sorted(found))}" if found else ""
        yield finding(
            "WG516",
            f"nothing shows that the checkpoint descends from {rule.lineage}{others}",
            evidence={"required": rule.lineage, "found": sorted(found)},
        )
        return
    lost = [state for state in lineage.weights if state.state != "alive"]
    if lost:
        first = lost[0]
        tensor = first.projection.tensor
        yield finding(
            "WG516",
            f"{len(lost)} of {len(lineage.weights)} published super weights of {rule.lineage} "
            f"are not in place; the first is {first.value:.6g}",
            file=tensor.shard,
            tensor=tensor.name,
            element=tensor.index(first.element),
            evidence={"required": rule.lineage, "states": [s.state for s in lost[:MAX_LISTED]]},
        )


def signature_path(checkpoint: Path, policy: Policy, folder: Path) -> Path | None:
    """Return where the signature that a policy speaks of should be; ``folder`` is the policy's."""
    rule = policy.signature
    if rule is None:
        return None
    if rule.path is None:
        return home_of(checkpoint) / SIGNATURE_NAME
    return place_of(rule.path, checkpoint, folder)


def check_signature(
    checkpoint: Path,
    policy: Policy,
    folder: Path,
    manifest: Path | None,
    recorded: Manifest | None,
    threads: int | None,
) -> Iterator[Finding]:
    """Yield what is wrong with the signature that the policy asks for.

    It must cover the manifest where that lies in the signed folder; one that the policy's owner
    keeps elsewhere is his.
    """
    rule = policy.signature
    if rule is None:
        return
    covered = []
    if manifest is not None and recorded is not None:
        pair = (manifest, manifest.parent / recorded.document.sidecar.name)
        covered = [path for path in pair if path.resolve().is_relative_to(home_of(checkpoint))]
    try:
        findings = verify_signature(
            home_of(checkpoint),
            _signer(rule, folder),
            signature=None if rule.path is None else signature_path(checkpoint, policy, folder),
            must_cover=covered,
            threads=threads,
        )
    except KeyFileError as error:
        key = "certificates" if rule.public_key is None else "public-key"
        raise UnusableError(("signature", key), f"cannot be used: {error}.") from error
    for found in findings:
        if rule.required or found.rule != "WG501":
            yield found


def _signer(rule: SignatureRule, folder: Path) -> Trusted:
    if rule.public_key is not None:
        return PublicKey(folder / rule.public_key)
    if rule.certificates is not None:
        return Certificate(tuple(folder / name for name in rule.certificates))
    return Sigstore(rule.identity or "", rule.identity_provider or "")


def _check_dtypes(checkpoint: Checkpoint, allowed: Iterable[str]) -> Iterator[Finding]:
    by_dtype: dict[str, list[str]] = {}
    for tensor in checkpoint.tensors:
        if tensor.dtype.name not in allowed:
            by_dtype.setdefault(tensor.dtype.name, []).append(tensor.name)
    files = {tensor.name: tensor.shard for tensor in checkpoint.tensors}
    for dtype, names in sorted(by_dtype.items()):
        number = f"{len(names)} tensor{'' if len(names) == 1 else 's'}"
        yield finding(
            "WG514",
            f"dtype {dtype} of {number}, the policy allows {_listed(allowed)}",
            file=files[names[0]],
            tensor=names[0],
            evidence={"dtype": dtype, "count": len(names), "tensors": names[:MAX_LISTED]},
        )


def _check_sizes(checkpoint: Checkpoint, policy: Policy) -> Iterator[Finding]:
    limits = policy.limits
    if limits.file_size is not None:
        greatest = size_in_bytes(limits.file_size)
        for file in checkpoint.files:
            if file.size > greatest:
                yield _too_large(f"the file has {file.size} bytes", greatest, file.size, file.name)
    total = sum(file.size for file in checkpoint.files)
    if limits.total_size is not None and total > size_in_bytes(limits.total_size):
        yield _too_large(f"all files have {total} bytes", size_in_bytes(limits.total_size), total)
    tensors = len(checkpoint.tensors) + checkpoint.unread
    if limits.tensors is not None and tensors > limits.tensors:
        yield _too_large(f"there are {tensors} tensors", limits.tensors, tensors)


def _too_large(words: str, limit: int, actual: int, file: str | None = None) -> Finding:
    evidence = {"limit": limit, "actual": actual}
    return finding("WG515", f"{words}, the policy allows {limit}", file=file, evidence=evidence)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
