"""Shard indexes: the JSON beside sharded checkpoints that says which file holds which tensor.

Source: the files that Hugging Face libraries write beside shards, ``{"metadata": {"total_size"},
"weight_map": {tensor: shard}}``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.names import shown
from weightguard.checkpoint.strict_json import read_json_object
from weightguard.errors import malformed
from weightguard.finding import Finding, finding
from weightguard.tensor import TensorView
from weightguard.units import counted

MAX_INDEX_BYTES = 64 << 20
"""100,000 tensors make an index of about 10 MB."""

MAX_SHARDS = 16_384
"""The largest published checkpoints have some hundreds."""

MAX_MISSING = 100
"""Missing shards reported one by one."""

MAX_TOTAL_SIZE = 1 << 63
"""No file system holds more."""

MAX_LISTED = 8
"""Names that a finding's evidence holds, each cut to ``MAX_LISTED_CHARS``."""

MAX_LISTED_CHARS = 200


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """A parsed index: tensor name to shard name, and the total size in bytes it claims.

    ``findings`` are flaws of the index that leave the weight map readable.
    """

    name: str
    weight_map: Mapping[str, str]
    total_size: int | None
    findings: tuple[Finding, ...] = ()

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards that the index names, sorted."""
        return tuple(sorted(set(self.weight_map.values())))


def read_index(file: CheckpointFile) -> ShardIndex:
    """Return the index in ``file``; every shard is a plain file name.

    Raises CheckpointError: WG101 when the file is no index, WG109 when it is malformed, WG110 for
    a shard name that leads elsewhere, WG116 above a limit.
    """
    value = read_json_object(file, limit=MAX_INDEX_BYTES, code="WG109")
    if "weight_map" not in value:
        words = f"{shown(file.name)} is JSON, but no shard index"
        raise malformed("WG101", words, file=file.name, offset=0)
    weight_map = value["weight_map"]
    if not _is_weight_map(weight_map):
        raise malformed(
            "WG109",
            f"the weight_map of {shown(file.name)} is no object of tensor to shard",
            file=file.name,
            offset=0,
        )
    shards = set(weight_map.values())
    if len(shards) > MAX_SHARDS:
        raise malformed(
            "WG116", f"{shown(file.name)} names over {MAX_SHARDS} shards", file=file.name, offset=0
        )
    for shard in sorted(shards):
        _require_plain(file, shard)
    total, findings = _total_size(file, value.get("metadata"))
    return ShardIndex(file.name, weight_map, total, findings)


def _is_weight_map(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(shard, str) for shard in value.values())
    )


def _require_plain(file: CheckpointFile, shard: str) -> None:
    if shard in ("", ".", "..") or any(character in shard for character in "/\\\0"):
        raise malformed(
            "WG110",
            f"{shown(file.name)} names the shard {shown(shard)}, which is no plain file name",
            file=file.name,
            offset=0,
        )
    try:
        shard.encode("utf-8")
    except UnicodeEncodeError as error:
        words = f"{shown(file.name)} names the shard {shown(shard)}, which is not Unicode text"
        raise malformed("WG109", words, file=file.name, offset=0) from error


def _total_size(file: CheckpointFile, metadata: Any) -> tuple[int | None, tuple[Finding, ...]]:
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if total is None:
        return None, ()
    if type(total) is int and 0 <= total <= MAX_TOTAL_SIZE:
        return total, ()
    if isinstance(total, float) and 0 <= total <= MAX_TOTAL_SIZE and total.is_integer():
        return int(total), ()
    # what is nested may be too deep to be written
    value = shown(str(total)) if isinstance(total, int | float | str) else "no number"
    words = f"the total_size of {shown(file.name)} is {value}, no size in bytes"
    return None, (finding("WG109", words, file=file.name, offset=0),)


def check_index(
    index: ShardIndex, shards: Mapping[str, Sequence[TensorView]], missing: Sequence[str]
) -> Iterator[Finding]:
    """Yield the contradictions between an index and the tensors that its shards really hold.

    ``missing`` are shards that do not exist; what they should hold is not reported again.
    """
    counts = Counter(index.weight_map.values())
    for shard in missing[:MAX_MISSING]:
        count = counts[shard]
        yield finding(
            "WG109",
            f"the shard {shown(shard)} is missing, and with it {counted(count, 'tensor')} that the "
            "index lists",
            file=shard,
            remedy="Fetch the missing shard.",
            evidence={"tensors": count},
        )
    holders = _holders(shards)
    listed = index.weight_map
    absent = frozenset(missing)
    lacking = [n for n, shard in listed.items() if n not in holders and shard not in absent]
    unlisted = [n for n in holders if n not in listed]
    moved = [n for n, shard in listed.items() if n in holders and shard not in holders[n]]
    for names, words in (
        (lacking, "listed in the index, but in no shard"),
        (unlisted, "in a shard, but not in the index"),
        (moved, "in another shard than the index says"),
    ):
        if names:
            yield _listed(index, names, words)
    if not (missing or lacking or unlisted):
        yield from _check_total(index, shards)


def count_absent(index: ShardIndex, shards: Mapping[str, Sequence[TensorView]]) -> int:
    """Return how many tensors the index lists that no shard holds, missing shards included."""
    holders = _holders(shards)
    return sum(name not in holders for name in index.weight_map)


def _holders(shards: Mapping[str, Sequence[TensorView]]) -> dict[str, list[str]]:
    holders: dict[str, list[str]] = {}
    for shard, tensors in shards.items():
        for tensor in tensors:
            for name in (tensor.name, *tensor.aliases):
                holders.setdefault(name, []).append(shard)
    return holders


def _listed(index: ShardIndex, names: list[str], words: str) -> Finding:
    count = "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"
    return finding(
        "WG109",
        f"{count} {words}: {shown(names[0])}",
        file=index.name,
        tensor=names[0],
        evidence={
            "count": len(names),
            "tensors": [name[:MAX_LISTED_CHARS] for name in names[:MAX_LISTED]],
        },
    )


def _check_total(
    index: ShardIndex, shards: Mapping[str, Sequence[TensorView]]
) -> Iterator[Finding]:
    if index.total_size is None:
        return
    tensors = [tensor for held in shards.values() for tensor in held]
    total = sum(tensor.nbytes for tensor in tensors)
    # tied names are counted once by some writers and once a name by others
    with_aliases = sum(tensor.nbytes * (1 + len(tensor.aliases)) for tensor in tensors)
    if not total <= index.total_size <= with_aliases:
        yield finding(
            "WG109",
            f"the index gives a total of {index.total_size} bytes, the shards hold {total}",
            file=index.name,
            evidence={"expected": str(index.total_size), "observed": total},
        )
