"""The model as it lies on disk: identified, verified, and handed to the runtime as verified.

What is loaded is read from the very descriptors that were hashed, or from a private copy of them
where onnxruntime itself does the reading. Links, hard links and every way out of the model's folder
are refused by the parser, and so are ranges that overlap or lie outside of their file.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxruntime as ort
import onnxruntime.capi.onnxruntime_pybind11_state as states
from google.protobuf.message import DecodeError

from weightguard.audit import verify_opened
from weightguard.catalogue import Severity
from weightguard.checkpoint import Checkpoint, open_checkpoint
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checksums import file_digests
from weightguard.errors import CheckpointError, IntegrityError, WeightguardError
from weightguard.finding import Finding, Report, finding
from weightguard.guard.incident import UNATTESTED
from weightguard.manifest import FileRecord, Manifest
from weightguard.progress import Meter

MAX_GRAPH_BYTES = (1 << 31) - 1
"""No protobuf message is longer; larger models keep their weights in external data."""

MAX_EMBEDDED_BYTES = 1 << 30
"""A longer tensor the runtime does not take from memory: it makes a protobuf message of it."""

RUNTIME_ERRORS = (
    states.EPFail, states.Fail, states.RuntimeException, states.InvalidArgument,
    states.InvalidGraph, states.InvalidProtobuf, states.NoSuchFile, states.NotImplemented,
)  # fmt: skip
"""What onnxruntime raises."""

FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"
"""The option that says where external data lies."""

_COPY_BYTES = 1 << 26


def open_model(path: str | os.PathLike[str], *, private: bool) -> Checkpoint:
    """Open the ONNX model at ``path``, in private copies of its files where ``private``.

    Raises CheckpointError for what cannot be read, WeightguardError for another format.
    """
    try:
        checkpoint = open_checkpoint(path, private=private)
    except CheckpointError as error:
        found = error.finding
        raise CheckpointError(found, f"{found.message}. {found.remedy}") from error
    if checkpoint.format != "onnx" or not os.path.isfile(path):  # noqa: PTH113
        checkpoint.close()
        raise WeightguardError(
            f"{os.fspath(path)!r:.300} is {checkpoint.format}, not an ONNX model file: "
            "give the .onnx file"
        )
    return checkpoint


def require_sound(checkpoint: Checkpoint, manifest: Manifest | None) -> Report:
    """Return the report on an open model; raise IntegrityError where it found an error."""
    report = verify_opened(checkpoint, manifest)
    if not report.complete or any(f.level >= Severity.ERROR for f in report.findings):
        raise IntegrityError(report)
    return report


def digests_of(checkpoint: Checkpoint) -> dict[str, FileRecord]:
    """Return size and SHA-256 of the graph file and of each file of external data."""
    return file_digests(checkpoint.files, None, Meter(0, None))


def identity_of(digests: dict[str, FileRecord]) -> str:
    """Return one SHA-256, in hex, that stands for the content of all files of a model.

    The graph file counts by its content alone: it may be called anything.
    """
    graph, *external = digests.items()
    records = [["", graph[1].size, graph[1].sha256]]
    records += [[name, record.size, record.sha256] for name, record in sorted(external)]
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()


def graph_bytes(checkpoint: Checkpoint) -> bytes:
    """Return the content of the graph file."""
    graph = checkpoint.files[0]
    return graph.read(0, graph.size, limit=MAX_GRAPH_BYTES)


def parsed(graph: bytes) -> onnx.ModelProto:
    """Return the graph in the onnx package's own objects; raises WeightguardError."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(graph)
    except DecodeError as error:
        raise WeightguardError(f"the graph file is malformed: {error!s:.300}") from error
    return model


@contextmanager
def given_external_data(checkpoint: Checkpoint, options: ort.SessionOptions) -> Iterator[None]:
    """Have ``options`` load external data as it was verified; make the session in the block.

    The runtime copies it from our memory then. What is too long for that it maps from a folder
    that only this user can enter, and that is gone when the block ends.
    """
    files = [file for file in checkpoint.files[1:] if file.size]
    if not files:
        yield
        return
    graph = checkpoint.files[0].name
    longest = max((t.nbytes for t in checkpoint.tensors if t.shard != graph), default=0)
    if longest > MAX_EMBEDDED_BYTES:
        with tempfile.TemporaryDirectory(prefix="weightguard-") as folder:
            for file in files:
                _write_out(file, Path(folder) / file.name)
            options.add_session_config_entry(FOLDER_ENTRY, folder)
            yield
        return
    held = [mmap.mmap(file.fileno(), file.size, access=mmap.ACCESS_READ) for file in files]
    options.add_external_initializers_from_files_in_memory(
        [file.name for file in files], held, [file.size for file in files]
    )
    yield
    del held


@contextmanager
def readable_failure() -> Iterator[None]:
    """Turn what onnxruntime raises about a model into an error that says what could not be done."""
    try:
        yield
    except RUNTIME_ERRORS as error:
        raise WeightguardError(
            f"onnxruntime cannot load the model, whose files are sound: {error!s:.500}"
        ) from error


def _write_out(file: CheckpointFile, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            done = 0
            while done < file.size:
                done += os.sendfile(target.fileno(), file.fileno(), done, _COPY_BYTES)
    except OSError as error:
        raise WeightguardError(
            f"no room for a private copy of {file.name!r:.200} ({file.size} bytes): "
            f"{error.strerror}; set TMPDIR to a folder with more of it"
        ) from error


def graph_doubt(graph_sha256: str, manifest: Manifest | None) -> Finding | None:
    """Return the finding that the manifest vouches for weights and not for the graph, if so."""
    if manifest is None:
        return None
    if any(record.sha256 == graph_sha256 for record in manifest.document.files.values()):
        return None
    return finding(
        UNATTESTED,
        "the manifest vouches for the weights, but not for the graph that uses them",
        severity=Severity.INFO,
        remedy="Make the manifest with digests of whole files, to be held to the graph as well.",
    )
