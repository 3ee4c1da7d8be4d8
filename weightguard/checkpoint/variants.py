"""Which weight files of one format belong together, and which are the same model once more.

Repositories ship a model in several precisions (``model.fp16.safetensors`` beside
``model.safetensors``) and for several loaders (``consolidated.safetensors`` beside shards). Such
files repeat each other's tensor names without being shards of one checkpoint. The names are those
that transformers, diffusers and mistral-inference write and look for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from weightguard.checkpoint.choice import WEIGHT_SUFFIXES
from weightguard.checkpoint.names import shown
from weightguard.finding import BesideKind, Finding, finding
from weightguard.units import counted

MAX_LISTED = 8
"""Missing shards that a finding's evidence names."""

WHOLE_NAMES = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
"""Names under which loaders look for a model in one file; they read nothing else then."""

_NUMBERED = re.compile(
    r"(?P<head>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<tail>(?:\.[^.]*)?)", re.DOTALL
)
_VARIANT = re.compile(r"[A-Za-z]\w*|\d+bit", re.ASCII)
_PRECISION = re.compile(r"(non_)?ema|b?f(p|loat)?\d+\w*|u?int\d+|\d+bit|half|full", re.ASCII)
_COPY = re.compile(r"consolidated(\.\d+)?", re.ASCII)
_SUFFIXES = tuple(suffix for group in WEIGHT_SUFFIXES for suffix in group)


@dataclass(frozen=True, slots=True)
class WeightName:
    """A weight file's name in parts: ``BASE[.VARIANT][-NUMBER-of-COUNT].SUFFIX``."""

    name: str
    base: str
    variant: str
    number: int
    count: int

    @classmethod
    def of(cls, name: str) -> WeightName:
        """Take a name apart; the variant may stand before or after the shard's number."""
        stem = name.rpartition(".")[0]
        match = _NUMBERED.fullmatch(stem)
        number, count = (int(match["number"]), int(match["count"])) if match else (0, 0)
        head, tail = (match["head"], match["tail"]) if match else (stem, "")
        base, _, variant = (head + tail).rpartition(".")
        if not base or not _VARIANT.fullmatch(variant):
            base, variant = head + tail, ""
        return cls(name, base, variant, number, count)

    @property
    def is_copy(self) -> bool:
        """Whether it is named as weights that are kept for another loader."""
        return _COPY.fullmatch(self.base) is not None


@dataclass(frozen=True, slots=True)
class Selection:
    """Of one format's files those to read, those known to be the same model, and strangers."""

    read: tuple[str, ...]
    beside: dict[str, BesideKind]
    strangers: tuple[str, ...]


def select(group: Sequence[str]) -> Selection:
    """Return which files of ``group``, all of one format, make the checkpoint.

    The unqualified name goes before variants, others before copies, and a name under which
    loaders find a whole model before everything else.
    """
    parts = [WeightName.of(name) for name in group]
    beside = repeated(group, [part.name for part in _chosen(parts)])
    left = [name for name in group if name not in beside]
    whole = next((name for name in WHOLE_NAMES if name in left), None)
    if whole is None:
        return Selection(tuple(left), beside, ())
    return Selection((whole,), beside, tuple(name for name in left if name != whole))


def repeated(names: Iterable[str], chosen: Sequence[str]) -> dict[str, BesideKind]:
    """Return which of ``names`` hold the model of the ``chosen`` files once more, and how.

    What does not end like a weight file, such as a manifest, holds no model.
    """
    read = frozenset(chosen)
    parts = [WeightName.of(name) for name in chosen]
    variants = {part.base: part.variant for part in parts}
    own_copies = all(part.is_copy for part in parts)
    found: dict[str, BesideKind] = {}
    for part in map(WeightName.of, names):
        if part.name in read or not part.name.lower().endswith(_SUFFIXES):
            continue
        if part.variant != variants.get(part.base, part.variant):
            found[part.name] = "variant"
        elif part.is_copy and not own_copies:
            found[part.name] = "copy"
    return found


def _chosen(parts: Sequence[WeightName]) -> list[WeightName]:
    """Return the parts without other variants of one among them, and without copies."""
    variants: dict[str, set[str]] = {}
    for part in parts:
        variants.setdefault(part.base, set()).add(part.variant)
    wanted = {base: _preferred(found) for base, found in variants.items()}
    left = [part for part in parts if wanted[part.base] in (None, part.variant)]
    return [part for part in left if not part.is_copy] or left


def _preferred(variants: set[str]) -> str | None:
    """Return the variant to read: the unqualified one; None where they are no variants at all."""
    if "" in variants:
        return ""
    # parts of something may be named with words too, but not with precisions
    if all(_PRECISION.fullmatch(variant) for variant in variants):
        return min(variants)
    return None


def incomplete_sets(names: Iterable[str]) -> Iterator[Finding]:
    """Yield WG109 for each set of shards that lacks some by the count in its own names.

    Parts of GGUF models are left to their own metadata.
    """
    sets: dict[tuple[str, str, int, str], dict[int, str]] = {}
    for part in map(WeightName.of, names):
        if part.count and not part.name.endswith(".gguf"):
            suffix = part.name.rpartition(".")[2]
            numbered = sets.setdefault((part.base, part.variant, part.count, suffix), {})
            numbered[part.number] = part.name
    for (*_, count, _), present in sorted(sets.items()):
        missing = [n for n in range(1, count + 1) if n not in present]
        if missing:
            yield _incomplete(next(iter(present.values())), count, missing)


def _incomplete(name: str, count: int, missing: Sequence[int]) -> Finding:
    lost = [_NUMBER.sub(f"-{number:05}-of-", name, count=1) for number in missing[:MAX_LISTED]]
    return finding(
        "WG109",
        f"{shown(name)} is one of {counted(count, 'shard')} by its name, of which "
        f"{len(missing)} {'is' if len(missing) == 1 else 'are'} missing: {shown(lost[0])}"
        + (" first" if len(missing) > 1 else ""),
        file=lost[0],
        evidence={"count": len(missing), "shards": lost},
        remedy="Fetch the missing shards.",
    )


_NUMBER = re.compile(r"-\d{5}-of-(?=\d{5})")
