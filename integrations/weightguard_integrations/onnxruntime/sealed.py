"""Sealed sessions: the weights in the form that the kernels read, mapped from a private file.

A session of a sealed model reads the packed bytes where they are mapped, at full speed. Those
addresses are found, shown to be read by a run, compared with what was sealed, and then watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime as ort
from blake3 import blake3

from weightguard.guard import Gap, LiveTensor, Token
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.schedule import BlockRef
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.tensor import DTYPES
from weightguard_integrations.onnxruntime import canary as canaries
from weightguard_integrations.onnxruntime.cache import (
    CANARY_NAME,
    GRAPH_NAME,
    MAX_GRAPH_BYTES,
    Cache,
    Entry,
    StaleEntry,
    held,
    read_entry,
    read_private,
)
from weightguard_integrations.onnxruntime.canary import Feed
from weightguard_integrations.onnxruntime.eviction import Held
from weightguard_integrations.onnxruntime.layout import DATA_NAME, Extent
from weightguard_integrations.onnxruntime.mappings import (
    Mapping,
    accessed_pages,
    forget_accesses,
    mappings_of,
)
from weightguard_integrations.onnxruntime.memory import Form, Memory, Region, SessionAdapter
from weightguard_integrations.onnxruntime.options import Recipe
from weightguard_integrations.onnxruntime.source import FOLDER_ENTRY

MAX_CANARY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class SealedModel:
    """An entry of the cache, read and verified but for its weights, which are when mapped."""

    place: Path
    entry: Entry
    graph: bytes
    feeds: tuple[Feed, ...]
    held: Held

    @classmethod
    def read(cls, place: Path, stated: dict[str, object]) -> SealedModel:
        """Read an entry whose record says what is ``stated``; raises StaleEntry."""
        in_use = held(place)
        entry = read_entry(place, stated)
        graph = read_private(place / GRAPH_NAME, MAX_GRAPH_BYTES, entry.graph)
        feeds = canaries.decoded(read_private(place / CANARY_NAME, MAX_CANARY_BYTES, entry.canary))
        return cls(place, entry, graph, feeds, in_use)


def sealed_options(recipe: Recipe, folder: Path, *, profiled: bool = False) -> ort.SessionOptions:
    """Return options that load a sealed graph as it stands, with weights in ``folder``."""
    options = recipe.fresh({FOLDER_ENTRY: str(folder)}, profiled=profiled)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


class SealedRuntime:
    """Makes sessions of one sealed model, one after the other, and finds their weights."""

    def __init__(self, model: SealedModel, cache: Cache, recipe: Recipe):
        self.model = model
        self._cache, self._recipe = cache, recipe
        self._mappings: Sequence[Mapping] = ()

    @contextmanager
    def making(self) -> Iterator[ort.SessionOptions]:
        """Yield options to make a session with in the block. Raises StaleEntry."""
        nested = self.model.entry.nested
        with self._cache.own_name(self.model.place, copied=nested) as folder:
            yield sealed_options(self._recipe, folder, profiled=True)
            self._mappings = mappings_of(folder / DATA_NAME)

    def proved(self, owner: object, run: Callable[[], object]) -> Memory:
        """Return the live weights of the session made last, ``owner``, which ``run`` runs.

        Raises StaleEntry where mapped bytes are not those that were sealed.
        """
        memory = locate(self.model.entry, self._mappings, owner)
        self.verify(memory)
        return prove(memory, self._mappings, run)

    def verify(self, memory: Memory) -> None:
        """Raise StaleEntry where mapped bytes are not those that were sealed."""
        adapter = SessionAdapter(memory)
        for extent in self.model.entry.extents:
            if extent.name not in memory.regions:
                continue
            hasher = blake3()
            for start in range(0, extent.nbytes, BLOCK_BYTES):
                stop = min(start + BLOCK_BYTES, extent.nbytes)
                hasher.update(adapter.read(extent.name, start, stop))
            if hasher.hexdigest() != extent.digest:
                raise StaleEntry(f"{extent.name!r:.200} is not what was sealed")


def locate(entry: Entry, mappings: Sequence[Mapping], owner: object) -> Memory:
    """Return where a session's weights are mapped, and what of them is not."""
    packed = {extent.source for extent in entry.extents if extent.packed}
    regions, gaps = {}, []
    for extent in entry.extents:
        where = _where(extent, mappings)
        if where is not None:
            address, writable = where
            live = _live(extent)
            form: Form = "packed" if extent.packed else "plain"
            if form == "plain" and extent.source in packed:
                form = "source"
            regions[extent.name] = Region(live, address, _account(entry, extent), writable, form)
        elif extent.packed or extent.source not in packed:
            gaps.append(Gap(extent.name, "unreachable", extent.nbytes, _NOT_MAPPED))
    gaps += [Gap(name, "unreachable", nbytes, _IN_GRAPH) for name, nbytes in entry.inline if nbytes]
    return Memory(owner, regions, tuple(gaps))


_NOT_MAPPED = "the runtime made a copy of it and unmapped the file"
_IN_GRAPH = "the runtime reads it while it builds the graph and keeps a copy of its own"
_NOT_READ = (
    "the canary's runs did not read it: kernels hold a copy, or it lies on a branch that they did "
    "not take, and canary= inputs should"
)
_NOT_TAKEN = (
    "packed, and checked where it lies, but the canary's runs did not read it: give canary= inputs "
    "that take its branch"
)


def _where(extent: Extent, mappings: Sequence[Mapping]) -> tuple[int, bool] | None:
    for mapping in mappings:
        address = mapping.address(extent.offset, extent.nbytes)
        if address is not None:
            return address, mapping.writable
    return None


def _live(extent: Extent) -> LiveTensor:
    token = Token(extent.offset)
    return LiveTensor(extent.name, DTYPES[extent.dtype], extent.shape, token, extent.shares)


def _account(entry: Entry, extent: Extent) -> str:
    what = "packed" if extent.packed else "optimised"
    return f"{what} by onnxruntime {entry.runtime} from verified files; the canary's outputs agree"


def prove(memory: Memory, mappings: Sequence[Mapping], run: Callable[[], object]) -> Memory:
    """Run the canary and return the memory without what is not live; gaps say what that is.

    Packed bytes have no reader but their kernel: they stay, and are a gap of unknown size where
    the run did not read them. What they were packed from is dropped where nothing else reads it.
    Any other weight is live if the run read it.
    """
    forget_accesses(mappings)
    run()
    live, unread = {}, []
    for name, region in memory.regions.items():
        tensor = region.tensor
        if accessed_pages(region.address, tensor.nbytes):
            live[name] = region
        elif region.form == "packed":
            live[name] = replace(region, read=False)
            unread.append(Gap(name, "copied", None, _NOT_TAKEN))
        elif region.form == "plain":
            unread.append(Gap(name, "copied", tensor.nbytes, _NOT_READ))
    return replace(memory, regions=live, gaps=(*unread, *memory.gaps))


class SealedFile:
    """The golden copy: the file that the weights are mapped from."""

    def __init__(self, model: SealedModel):
        self._extents = {extent.name: extent for extent in model.entry.extents}
        self._path = model.place / DATA_NAME

    def block(self, entry: TensorBaseline, ref: BlockRef) -> bytes | None:
        """See Golden."""
        extent = self._extents.get(entry.tensor.name)
        if extent is None:
            return None
        try:
            with self._path.open("rb") as file:
                file.seek(extent.offset + ref.start)
                data = file.read(ref.nbytes)
        except OSError:
            return None
        return data if len(data) == ref.nbytes else None
