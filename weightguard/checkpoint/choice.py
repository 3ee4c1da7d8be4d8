"""Which files of a folder are its checkpoint: names propose, in a fixed order; contents decide."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from weightguard.checkpoint.names import shown
from weightguard.errors import malformed

MAX_FOLDER_ENTRIES = 1_000_000
"""More names than that are no model folder."""

SAFETENSORS, TORCH = (".safetensors",), (".bin", ".pt", ".pth", ".ckpt")
WEIGHT_SUFFIXES = (SAFETENSORS, TORCH, (".gguf",), (".onnx",))
"""Groups of suffixes, most trustworthy format first; one group makes the checkpoint."""

_SAFETENSORS_INDEX = ".safetensors.index.json"
_TORCH_INDEX = (".bin.index.json", ".pt.index.json")
_WHOLE = "model.safetensors"

COMPANION = re.compile(
    r"(training_args|optimizer|scheduler|scaler|random_states|rng_state|trainer_state)\b.*"
    r"|(optimizer|random_states|rng_state|zero_pp_rank)_.*"
)
"""Names of what trainers write beside weights."""
_TORCH_MODEL = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


def names_in(folder: Path) -> tuple[str, ...]:
    """Return the names in ``folder``, sorted.

    Raises CheckpointError: WG102 when it cannot be listed, WG116 above ``MAX_FOLDER_ENTRIES``.
    """
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > MAX_FOLDER_ENTRIES:
                    words = f"the folder has more than {MAX_FOLDER_ENTRIES} entries"
                    raise malformed("WG116", words, file=".")
    except OSError as error:
        raise malformed(
            "WG122",
            f"the folder {shown(str(folder))} cannot be listed: {error.strerror}",
            file=".",
            remedy="Check the folder's permissions.",
        ) from error
    return tuple(sorted(names))


def index_of(names: Sequence[str]) -> str | None:
    """Return the shard index that loaders of the folder follow, or None.

    A safetensors index first, the unqualified ``model`` before variants; a torch index unless
    there is a whole ``model.safetensors``, which loaders prefer.
    """
    found = sorted((n for n in names if n.endswith(_SAFETENSORS_INDEX)), key=_variant)
    if not found and _WHOLE not in names:
        found = sorted((n for n in names if n.endswith(_TORCH_INDEX)), key=_variant)
    return found[0] if found else None


def _variant(name: str) -> tuple[int, str]:
    return name.count("."), name


def weight_groups(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of names that may be weights, in order of preference, none empty."""
    groups = (
        tuple(n for n in names if _may_be_weights(n, suffixes)) for suffixes in WEIGHT_SUFFIXES
    )
    return tuple(_without_strays(group) for group in groups if group)


def _may_be_weights(name: str, suffixes: tuple[str, ...]) -> bool:
    if not name.lower().endswith(suffixes):
        return False
    return suffixes is not TORCH or COMPANION.fullmatch(name) is None


def _without_strays(group: tuple[str, ...]) -> tuple[str, ...]:
    """Return only the files of the usual name where there are any."""
    return tuple(name for name in group if _TORCH_MODEL.fullmatch(name)) or group


def extra_shards(names: Iterable[str], shards: Sequence[str]) -> list[str]:
    """Return the names that a loader might take for shards too, though no index lists them.

    Any safetensors file beside safetensors shards; for other suffixes, which vocabularies and
    optimizer states have too, names that begin like a shard's.
    """
    suffixes = {Path(shard).suffix for shard in shards}
    stems = {re.split(r"[-.]", shard, maxsplit=1)[0] for shard in shards}
    listed = frozenset(shards)
    return [
        name
        for name in names
        if name not in listed
        and Path(name).suffix in suffixes
        and (Path(name).suffix in SAFETENSORS or re.split(r"[-.]", name, maxsplit=1)[0] in stems)
    ]
