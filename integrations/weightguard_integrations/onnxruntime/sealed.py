"""Sealed sessions: the weights in the form that the kernels read, mapped from a private file.

onnxruntime optimises the verified model once and writes out what its kernels made of the weights.
A session of that file reads the packed bytes where they are mapped, at full speed. Those
addresses are found, shown to be read by a run, compared with what was sealed, and then watched.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from blake3 import blake3

from weightguard.checkpoint import Checkpoint
from weightguard.errors import WeightguardError
from weightguard.guard import Gap, LiveTensor, Token
from weightguard.guard.baseline import TensorBaseline
from weightguard.guard.schedule import BlockRef
from weightguard.scan.digest import BLOCK_BYTES
from weightguard.tensor import DTYPES
from weightguard_integrations.onnxruntime import canary as canaries
from weightguard_integrations.onnxruntime.cache import (
    CANARY_NAME,
    ENTRY_NAME,
    GRAPH_NAME,
    MAX_GRAPH_BYTES,
    SCHEMA,
    Entry,
    StaleEntry,
    read_entry,
    read_private,
    write_private,
)
from weightguard_integrations.onnxruntime.canary import Feed
from weightguard_integrations.onnxruntime.layout import DATA_NAME, Extent, Relaid, relay
from weightguard_integrations.onnxruntime.mappings import (
    Mapping,
    accessed_pages,
    forget_accesses,
)
from weightguard_integrations.onnxruntime.memory import Form, Memory, Region
from weightguard_integrations.onnxruntime.options import CPU, Recipe, processor
from weightguard_integrations.onnxruntime.source import give_external_data, graph_bytes

SMALLEST_EXTERNAL = 1024
"""Bytes from which onnxruntime itself may keep a weight outside of the graph."""

MAX_CANARY_BYTES = 256 << 20

_FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"
_RAW_DATA = "optimised.data"
_ERRORS = 3


@dataclass(frozen=True, slots=True)
class SealedModel:
    """An entry of the cache, read and verified but for its weights, which are when mapped."""

    place: Path
    entry: Entry
    graph: bytes
    feeds: tuple[Feed, ...]

    @classmethod
    def read(cls, place: Path, key: str) -> SealedModel:
        """Read an entry; raises StaleEntry."""
        entry = read_entry(place, key)
        graph = read_private(place / GRAPH_NAME, MAX_GRAPH_BYTES, entry.graph)
        feeds = _decoded(read_private(place / CANARY_NAME, MAX_CANARY_BYTES, entry.canary))
        return cls(place, entry, graph, feeds)


@dataclass(frozen=True, slots=True)
class Order:
    """What to seal: a model whose files were verified, and how it is to run."""

    key: str
    model: str
    weights: str | None
    options: dict[str, str]
    feeds: tuple[Feed, ...] | None


def seal_model(checkpoint: Checkpoint, recipe: Recipe, order: Order, work: Path) -> None:
    """Optimise and pack the model of private copies, and write an entry into ``work``.

    Raises WeightguardError where onnxruntime cannot, where no canary runs, or where the sealed
    model answers it otherwise than the plain one.
    """
    graph = graph_bytes(checkpoint)
    feeds, outputs = _answered(_compile(checkpoint, graph, recipe, work), graph, order.feeds)
    relaid, sealed = _relay(work, recipe, feeds, outputs)
    live = {extent.source for extent in relaid.extents} | {name for name, _ in relaid.inline}
    folded = [tensor for tensor in checkpoint.tensors if tensor.name not in live]
    entry = Entry(
        SCHEMA, order.key, order.model, order.weights, ort.__version__, processor(), order.options,
        write_private(work / GRAPH_NAME, sealed),
        write_private(work / CANARY_NAME, _encoded(feeds)), outputs, relaid.extents, relaid.inline, relaid.nested,
        (len(folded), sum(t.nbytes for t in folded)),
    )  # fmt: skip
    write_private(work / ENTRY_NAME, msgspec.json.encode(entry))


def _answered(
    plain: ort.InferenceSession, graph: bytes, given: tuple[Feed, ...] | None
) -> tuple[tuple[Feed, ...], tuple[str, ...]]:
    """Return the canary and what the plain session answers to it."""

    def run(feed: Feed) -> canaries.Outputs:
        outputs: canaries.Outputs = plain.run(None, feed)
        return outputs

    model = None if given else onnx.ModelProto.FromString(graph)
    feeds = given or canaries.chosen(run, plain.get_inputs(), model)
    return feeds, canaries.stable(run, feeds)


def _compile(
    checkpoint: Checkpoint, graph: bytes, recipe: Recipe, work: Path
) -> ort.InferenceSession:
    """Return a plain session of the model, which has written its optimised form into ``work``."""
    options = recipe.fresh(
        {
            "session.optimized_model_external_initializers_file_name": _RAW_DATA,
            "session.optimized_model_external_initializers_min_size_in_bytes": str(
                SMALLEST_EXTERNAL
            ),
            "session.save_external_prepacked_constant_initializers": "1",
        }
    )
    options.optimized_model_filepath = str(work / "optimised.onnx")
    options.log_severity_level = max(options.log_severity_level, _ERRORS)
    held = give_external_data(checkpoint, graph, options)
    try:
        return ort.InferenceSession(graph, options, providers=[CPU])
    except Exception as error:
        raise WeightguardError(f"onnxruntime cannot load the model: {error!s:.500}") from error
    finally:
        del held


def _relay(
    work: Path, recipe: Recipe, feeds: Sequence[Feed], outputs: tuple[str, ...]
) -> tuple[Relaid, bytes]:
    """Lay the weights out anew; small ones outside of the graph, where the model bears that."""
    failure = ""
    for move_small in (True, False):
        model = onnx.load(work / "optimised.onnx", load_external_data=False)
        raw = work / _RAW_DATA
        with (
            raw.open("rb") if raw.exists() else io.BytesIO() as source,
            (work / DATA_NAME).open("w+b") as target,
        ):
            (work / DATA_NAME).chmod(0o600)
            relaid = relay(model, source, target, move_small=move_small)
        graph = model.SerializeToString()
        del model
        try:
            sealed = open_session(graph, work, recipe)
            answers = canaries.recorded(lambda feed, s=sealed: s.run(None, feed), feeds)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - whatever the runtime raises, the other may do
            failure = f"{error!s:.500}"
            continue
        if answers == outputs:
            (work / "optimised.onnx").unlink()
            raw.unlink(missing_ok=True)
            return relaid, graph
        failure = "it answers the canary otherwise than the plain model"
    raise WeightguardError(
        f"the model cannot be sealed: {failure}. Use mode='inplace' or mode='opaque'"
    )


def open_session(graph: bytes, folder: Path, recipe: Recipe) -> ort.InferenceSession:
    """Return a session of a sealed graph whose weights lie in ``folder``."""
    options = sealed_options(recipe, folder)
    return ort.InferenceSession(graph, options, providers=[CPU], enable_fallback=0)


def sealed_options(recipe: Recipe, folder: Path) -> ort.SessionOptions:
    """Return options that load a sealed graph as it stands, with weights in ``folder``."""
    options = recipe.fresh({_FOLDER_ENTRY: str(folder)})
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def locate(
    model: SealedModel, mappings: Sequence[Mapping], owner: object, generation: int
) -> Memory:
    """Return where a session's weights are mapped, and what of them is not."""
    entry = model.entry
    packed = {extent.source for extent in entry.extents if extent.packed}
    regions, gaps = {}, []
    for extent in entry.extents:
        where = _where(extent, mappings)
        if where is not None:
            address, writable = where
            live = _live(extent, address, generation)
            form: Form = "packed" if extent.packed else "plain"
            if form == "plain" and extent.source in packed:
                form = "source"
            regions[extent.name] = Region(live, _account(entry, extent), writable, form)
        elif extent.packed or extent.source not in packed:
            gaps.append(Gap(extent.name, "unreachable", extent.nbytes, _NOT_MAPPED))
    gaps += [Gap(name, "unreachable", nbytes, _IN_GRAPH) for name, nbytes in entry.inline if nbytes]
    return Memory(owner, regions, tuple(gaps))


_NOT_MAPPED = "the runtime made a copy of it and unmapped the file"
_IN_GRAPH = "the runtime reads it while it builds the graph and keeps a copy of its own"
_NOT_READ = "the canary's runs did not read it: kernels hold a copy, or its branch was not taken"


def _where(extent: Extent, mappings: Sequence[Mapping]) -> tuple[int, bool] | None:
    for mapping in mappings:
        address = mapping.address(extent.offset, extent.nbytes)
        if address is not None:
            return address, mapping.writable
    return None


def _live(extent: Extent, address: int, generation: int) -> LiveTensor:
    token = Token(address, generation)
    return LiveTensor(extent.name, DTYPES[extent.dtype], extent.shape, token, extent.shares)


def _account(entry: Entry, extent: Extent) -> str:
    what = "packed" if extent.packed else "optimised"
    return f"{what} by onnxruntime {entry.runtime} from verified files; the canary's outputs agree"


def prove(memory: Memory, mappings: Sequence[Mapping], run: Callable[[], object]) -> Memory:
    """Run the canary and return the memory without what is not live; gaps say what that is.

    Packed bytes have no reader but their kernel. What they were packed from is dropped where
    nothing else reads it. Any other weight is live if the run read it.
    """
    forget_accesses(mappings)
    run()
    live, unread = {}, []
    for name, region in memory.regions.items():
        tensor = region.tensor
        if region.form == "packed" or accessed_pages(tensor.token.storage, tensor.nbytes):
            live[name] = region
        elif region.form == "plain":
            unread.append(Gap(name, "copied", tensor.nbytes, _NOT_READ))
    return replace(memory, regions=live, gaps=(*memory.gaps, *unread))


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


def verify_mapped(
    model: SealedModel, memory: Memory, read: Callable[[str, int, int], memoryview]
) -> None:
    """Raise StaleEntry where mapped bytes are not those that were sealed."""
    for extent in model.entry.extents:
        if extent.name in memory.regions:
            hasher = blake3()
            for start in range(0, extent.nbytes, BLOCK_BYTES):
                hasher.update(read(extent.name, start, min(start + BLOCK_BYTES, extent.nbytes)))
            if hasher.hexdigest() != extent.digest:
                raise StaleEntry(f"{extent.name!r:.200} is not what was sealed")


def _encoded(feeds: Sequence[Feed]) -> bytes:
    file = io.BytesIO()
    names = [list(feed) for feed in feeds]
    arrays = {f"{i}.{j}": a for i, feed in enumerate(feeds) for j, a in enumerate(feed.values())}
    np.savez(file, names=np.array(msgspec.json.encode(names).decode()), **arrays)
    return file.getvalue()


def _decoded(data: bytes) -> tuple[Feed, ...]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        names = msgspec.json.decode(str(arrays["names"]), type=list[list[str]])
        return tuple(
            {name: arrays[f"{i}.{j}"] for j, name in enumerate(run)} for i, run in enumerate(names)
        )


def feeds_identity(feeds: Sequence[Feed] | None) -> str:
    """Return what a key says of the caller's canary."""
    if feeds is None:
        return "own"
    hasher = hashlib.sha256()
    for feed in feeds:
        for name in sorted(feed):
            hasher.update(f"{name}\0{canaries.digest([feed[name]])}\0".encode())
        hasher.update(b"\n")
    return hasher.hexdigest()
