"""Sealing: a verified model becomes an entry of the cache.

onnxruntime optimises it once and writes out what its kernels made of the weights; those are laid
out anew, and a session of the result must answer the canary as the plain session does.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx
import onnxruntime as ort

from weightguard.checkpoint import Checkpoint
from weightguard.errors import WeightguardError
from weightguard.manifest import Manifest
from weightguard_integrations.onnxruntime import canary as canaries
from weightguard_integrations.onnxruntime.cache import (
    CANARY_NAME,
    ENTRY_NAME,
    GRAPH_NAME,
    SCHEMA,
    Entry,
    key_of,
    write_private,
)
from weightguard_integrations.onnxruntime.canary import Feed
from weightguard_integrations.onnxruntime.layout import DATA_NAME, Relaid, relay
from weightguard_integrations.onnxruntime.options import (
    CPU,
    Recipe,
    processor,
    threads_available,
)
from weightguard_integrations.onnxruntime.sealed import sealed_options
from weightguard_integrations.onnxruntime.source import (
    digests_of,
    given_external_data,
    graph_bytes,
    identity_of,
    open_model,
    parsed,
    readable_failure,
    require_sound,
)

SMALLEST_EXTERNAL = 1024
"""Bytes from which onnxruntime itself may keep a weight outside of the graph."""

_RAW_DATA = "optimised.data"
_RAW_GRAPH = "optimised.onnx"
_ERRORS = 3
LEAST_ROOM, AMPLE_ROOM = 2, 3
"""Times the model's size: what sealing needs at least, and what it never needs more than."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to seal, and how it is to run: ``model`` for the content of its files, ``graph`` for
    the graph file's alone (SHA-256), ``weights`` for the manifest's.
    """

    key: str
    model: str
    graph: str
    weights: str | None
    options: dict[str, str]
    feeds: tuple[Feed, ...] | None
    recipe: Recipe

    def stated(self) -> dict[str, object]:
        """Return what the record of an entry that fulfils this says of itself."""
        return {
            "schema": SCHEMA,
            "key": self.key,
            "model": self.model,
            "weights": self.weights,
            "runtime": ort.__version__,
            "processor": processor(),
            "options": self.options,
        }


def order_of(
    path: str | os.PathLike[str],
    manifest: Manifest | None,
    recipe: Recipe,
    feeds: tuple[Feed, ...] | None,
    variant: str,
) -> Order:
    """Return what to seal for the model at ``path``, from the content of all of its files."""
    with open_model(path, private=False) as checkpoint:
        recipe = recipe.fitted(checkpoint)
        digests = digests_of(checkpoint)
        graph = digests[checkpoint.files[0].name].sha256
    model = identity_of(digests)
    weights = None if manifest is None else manifest.document.weights
    options = recipe.described()
    parts = {
        "model": model,
        "weights": weights,
        "files": {} if manifest is None else manifest.document.files,
        "runtime": ort.__version__,
        "processor": processor(),
        "threads": threads_available(),
        "options": options,
        "canary": canaries.identity(feeds),
        "variant": variant,
    }
    return Order(key_of(parts), model, graph, weights, options, feeds, recipe)


def fill(
    order: Order,
    path: str | os.PathLike[str],
    manifest: Manifest | None,
    work: Path,
) -> None:
    """Verify the model at ``path`` in private copies of its files, and write its entry.

    Raises IntegrityError, CheckpointError, and WeightguardError as ``seal_model`` does.
    """
    with open_model(path, private=True) as checkpoint:
        if identity_of(digests_of(checkpoint)) != order.model:
            raise WeightguardError(
                "the model's files changed while they were read: load from files that are at rest"
            )
        require_room(work.parent, sum(file.size for file in checkpoint.files))
        require_sound(checkpoint, manifest)
        seal_model(checkpoint, order, work)


def seal_model(checkpoint: Checkpoint, order: Order, work: Path) -> None:
    """Optimise and pack the model of private copies, and write an entry into ``work``.

    Raises WeightguardError where onnxruntime cannot, where no canary runs, or where the sealed
    model answers it otherwise than the plain one.
    """
    graph, recipe = graph_bytes(checkpoint), order.recipe
    feeds, outputs = _answered(_compile(checkpoint, graph, recipe, work), graph, order.feeds)
    relaid, sealed = _relay(work, recipe, feeds, outputs)
    live = {extent.source for extent in relaid.extents} | {name for name, _ in relaid.inline}
    folded = [tensor for tensor in checkpoint.tensors if tensor.name not in live]
    entry = Entry(
        SCHEMA, order.key, order.model, order.weights, ort.__version__, processor(), order.options,
        write_private(work / GRAPH_NAME, sealed),
        write_private(work / CANARY_NAME, canaries.encoded(feeds)),
        outputs, relaid.extents, relaid.inline, relaid.nested,
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

    feeds = given
    if feeds is None:
        feeds = canaries.chosen(run, plain.get_inputs(), parsed(graph))
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
    options.optimized_model_filepath = str(work / _RAW_GRAPH)
    options.log_severity_level = max(options.log_severity_level, _ERRORS)
    try:
        with given_external_data(checkpoint, options), readable_failure():
            return ort.InferenceSession(graph, options, providers=[CPU])
    except WeightguardError as error:
        if not any(work.iterdir()):
            raise
        # it was writing already
        nbytes = sum(file.size for file in checkpoint.files)
        raise WeightguardError(f"{error}. {_give_room(work.parent, nbytes)}") from error


def require_room(folder: Path, nbytes: int) -> None:
    """Raise WeightguardError where ``folder`` has no room to seal a model of ``nbytes``."""
    if shutil.disk_usage(folder).free < LEAST_ROOM * nbytes:
        raise WeightguardError(f"no room to seal the model. {_give_room(folder, nbytes)}")


def _give_room(folder: Path, nbytes: int) -> str:
    free = shutil.disk_usage(folder).free
    return (
        f"Sealing may take {AMPLE_ROOM * nbytes:,} bytes, and {free:,} are free in "
        f"{str(folder)!r:.300}: give cache= a folder with more room, or mode='inplace'"
    )


def _relay(
    work: Path, recipe: Recipe, feeds: Sequence[Feed], outputs: tuple[str, ...]
) -> tuple[Relaid, bytes]:
    """Lay the weights out anew; small ones outside of the graph, where the model bears that."""
    failure = ""
    for move_small in (True, False):
        relaid, graph = _laid_out(work, move_small)
        try:
            answers = _answers(graph, work, recipe, feeds)
        except Exception as error:  # noqa: BLE001 - whatever the runtime raises, the other may do
            failure = f"{error!s:.500}"
            continue
        if answers == outputs:
            (work / _RAW_GRAPH).unlink()
            (work / _RAW_DATA).unlink(missing_ok=True)
            return relaid, graph
        failure = "it answers the canary otherwise than the plain model"
    raise WeightguardError(
        f"the model cannot be sealed: {failure}. Use mode='inplace' or mode='opaque'"
    )


def _laid_out(work: Path, move_small: bool) -> tuple[Relaid, bytes]:
    model = onnx.load(work / _RAW_GRAPH, load_external_data=False)
    raw = work / _RAW_DATA
    with (
        raw.open("rb") if raw.exists() else io.BytesIO() as source,
        (work / DATA_NAME).open("w+b") as target,
    ):
        (work / DATA_NAME).chmod(0o600)
        relaid = relay(model, source, target, move_small=move_small)
    return relaid, model.SerializeToString()


def _answers(graph: bytes, folder: Path, recipe: Recipe, feeds: Sequence[Feed]) -> tuple[str, ...]:
    """Return what a session of a sealed graph answers, whose weights lie in ``folder``."""
    options = sealed_options(recipe, folder)
    session = ort.InferenceSession(graph, options, providers=[CPU], enable_fallback=0)
    return canaries.recorded(lambda feed: session.run(None, feed), feeds)
