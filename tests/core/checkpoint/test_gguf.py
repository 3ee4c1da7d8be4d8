"""GGUF files that the gguf package wrote, and real ones, against that package as the oracle."""

from __future__ import annotations

import shutil
import struct
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from tests.gguf_files import ARRAY, STRING, Info, array, entry, gguf_bytes, string, text, u32
from tests.real_models import smollm2_gguf
from weightguard import CheckpointError, Severity, TensorView, audit, fingerprint, open_checkpoint
from weightguard.checkpoint.container import ParsedFile
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.gguf import GGML_TYPES, REMOVED_TYPES, parse_gguf, split_names
from weightguard.tensor import DTYPES

Q8_1_BYTES = 36
"""ggml stores two halves and 32 bytes; the gguf package has 40, from when they were floats."""

BLOCK_TYPES = sorted(
    (kind for kind, (elements, _) in GGML_QUANT_SIZES.items() if elements > 1),
    key=lambda kind: kind.value,
)


def parsed(path: Path) -> ParsedFile:
    return parse_gguf(CheckpointFile(path, path.name))


def write(path: Path, *args: object, **settings: object) -> Path:
    path.write_bytes(gguf_bytes(*args, **settings))  # type: ignore[arg-type]
    return path


def oracle(path: Path) -> Iterator[tuple[str, str, tuple[int, ...], int, bytes]]:
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(reversed(tensor.shape.tolist()))
        yield (
            tensor.name,
            tensor.tensor_type.name,
            shape,
            tensor.data_offset,
            tensor.data.tobytes(),
        )


def described(tensor: TensorView) -> tuple[str, str, tuple[int, ...], int | None, bytes]:
    return tensor.name, tensor.dtype.name, tensor.shape, tensor.offset, bytes(tensor.read())


def random_blocks(kind: GGMLQuantizationType, rows: int, blocks: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(kind.value)
    nbytes = blocks * GGML_QUANT_SIZES[kind][1]
    return rng.integers(0, 256, (rows, nbytes), dtype=np.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a tensor of every type that the gguf package can write."""
    path = tmp_path_factory.mktemp("gguf") / "all.gguf"
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("several types")
    writer.add_context_length(8192)
    writer.add_rope_freq_base(10000.5)
    writer.add_bool("test.yes", True)
    writer.add_int64("test.negative", -(1 << 40))
    writer.add_token_list([f"token {number}" for number in range(3000)])
    writer.add_token_scores([0.25] * 3000)
    for kind in ("float32", "float16", "float64"):
        writer.add_tensor(f"plain.{kind}", rng.standard_normal((3, 5, 7)).astype(kind))
    for kind in ("int8", "int16", "int32", "int64"):
        writer.add_tensor(f"plain.{kind}", rng.integers(-100, 100, (11,)).astype(kind))
    brains = rng.integers(0, 1 << 15, (6, 8), dtype=np.uint16)
    writer.add_tensor("plain.bf16", brains.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16)
    for block in BLOCK_TYPES:
        if block is not GGMLQuantizationType.Q8_1:
            writer.add_tensor(f"raw.{block.name}", random_blocks(block, 3, 2), raw_dtype=block)
    for block in (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0):
        weights = rng.standard_normal((4, 96)).astype(np.float32)
        quantised = gguf.quants.quantize(weights, block)
        writer.add_tensor(f"quantised.{block.name}", quantised, raw_dtype=block)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_type_numbers_and_sizes_are_those_of_the_gguf_package() -> None:
    assert {kind.value: kind.name for kind in GGMLQuantizationType} == GGML_TYPES
    assert not GGML_TYPES.keys() & REMOVED_TYPES.keys()
    for kind, sizes in GGML_QUANT_SIZES.items():
        dtype = DTYPES[kind.name]
        expected = (32, Q8_1_BYTES) if kind.name == "Q8_1" else sizes
        assert (dtype.block_elements, dtype.block_bytes) == expected, kind


def test_names_types_shapes_places_and_bytes(written: Path) -> None:
    result = parsed(written)
    assert result.findings == ()
    assert [described(tensor) for tensor in result.tensors] == list(oracle(written))
    assert len(result.tensors) == 8 + len(BLOCK_TYPES) - 1 + 2


def test_scalars_and_strings_become_metadata(written: Path) -> None:
    metadata = parsed(written).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.name"] == "several types"
    assert metadata["llama.context_length"] == "8192"
    assert metadata["llama.rope.freq_base"] == "10000.5"
    assert metadata["test.yes"] == "true"
    assert metadata["test.negative"] == str(-(1 << 40))
    assert "tokenizer.ggml.tokens" not in metadata


def test_every_type_opens_and_audits(written: Path) -> None:
    with open_checkpoint(written) as checkpoint:
        assert checkpoint.format == "gguf"
        assert len(checkpoint.tensors) == len(parsed(written).tensors)
    report = audit(written)
    assert report.complete
    assert report.coverage.bytes_checked == report.coverage.bytes_total


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_other_alignments(tmp_path: Path, alignment: int) -> None:
    # the gguf package needs multiples of 8, the format only a power of two
    second = 32 + -32 % alignment
    data = bytes(range(32)) + bytes(second - 32) + bytes(range(32))
    infos = (Info(b"a"), Info(b"b", offset=second))
    key = [u32(b"general.alignment", alignment)]
    path = write(tmp_path / "w.gguf", infos, data, entries=key, alignment=alignment)
    result = parsed(path)
    assert result.findings == ()
    assert [t.read() for t in result.tensors] == [bytes(range(32))] * 2
    if alignment >= 8:
        assert [described(tensor) for tensor in result.tensors] == list(oracle(path))


def test_version_2_reads_as_version_3(tmp_path: Path) -> None:
    two = parsed(write(tmp_path / "two.gguf", version=2))
    three = parsed(write(tmp_path / "three.gguf"))
    assert [t.shape for t in two.tensors] == [t.shape for t in three.tensors] == [(2, 4)]
    assert two.findings == three.findings == ()


@pytest.mark.parametrize(
    ("ne", "shape"), [((), ()), ((0,), (0,)), ((3, 0), (0, 3)), ((1, 2, 3, 4), (4, 3, 2, 1))]
)
def test_shapes_are_in_c_order(tmp_path: Path, ne: tuple[int, ...], shape: tuple[int, ...]) -> None:
    nbytes = 4 * int(np.prod(shape))
    path = write(tmp_path / "w.gguf", (Info(ne=ne),), bytes(nbytes))
    result = parsed(path)
    assert result.tensors[0].shape == shape
    assert result.tensors[0].nbytes == nbytes
    assert result.findings == ()


def test_the_last_tensor_needs_no_padding(tmp_path: Path) -> None:
    for size in (4, 17, 32):
        result = parsed(write(tmp_path / "w.gguf", (Info(ne=(1,)),), bytes(size)))
        assert result.findings == ()


def test_a_header_without_tensors_is_sound(tmp_path: Path) -> None:
    result = parsed(write(tmp_path / "vocab.gguf", (), b"", entries=[string(b"k", b"v")]))
    assert (result.tensors, result.findings, dict(result.metadata)) == ((), (), {"k": "v"})


def test_a_large_vocabulary_costs_little(tmp_path: Path) -> None:
    count = 256 << 10
    tokens = b"".join(text(b"token %d" % number) for number in range(count))
    numbers = struct.pack("<f", 0.5) * count
    entries = [
        entry(b"tokenizer.ggml.tokens", ARRAY, array(STRING, count, tokens)),
        entry(b"tokenizer.ggml.scores", ARRAY, array(6, count, numbers)),
        string(b"long", b"x" * 5_000_000),
    ]
    path = write(tmp_path / "w.gguf", entries=entries)
    started = time.process_time()
    assert len(parsed(path).tensors) == 1
    assert time.process_time() - started < 10
    tracemalloc.start()
    result = parsed(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert len(result.metadata["long"]) < 2000
    assert result.findings == ()


def test_strings_that_cross_the_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for length in (65_520, 65_527, 65_528, 65_529, 65_536, 70_000, 200_000):
        lengths = [length, *rng.integers(0, 40, 300).tolist(), length, 0, 0]
        strings = b"".join(text(b"s" * size) for size in lengths)
        value = array(STRING, len(lengths), strings)
        entries = [entry(b"strings", ARRAY, value), string(b"after", b"here")]
        result = parsed(write(tmp_path / "w.gguf", entries=entries))
        assert result.metadata["after"] == "here"
        assert result.findings == ()


def split_model(folder: Path, names: list[str], **changes: dict[bytes, int]) -> list[Path]:
    """Write one tensor a part; ``changes`` of "part0", "part1", ... override its split keys."""
    paths = []
    for number, name in enumerate(names):
        keys = {b"split.no": number, b"split.count": len(names), b"split.tensors.count": len(names)}
        keys |= changes.get(f"part{number}", {})
        entries = [u32(key, value) for key, value in keys.items()]
        info = Info(b"part %d" % number)
        paths.append(write(folder / name, (info,), bytes([number]) * 32, entries=entries))
    return paths


PARTS = [f"model-{number:05}-of-00003.gguf" for number in (1, 2, 3)]


def test_hostile_text_is_escaped_in_messages(tmp_path: Path) -> None:
    first, second, _ = split_model(tmp_path, PARTS)
    entries = [
        u32(b"split.no", 1),
        u32(b"split.count", 3),
        string(b"split.tensors.count", b"\x1b[2J\n::error"),
    ]
    write(second, (Info(b"part 1"),), entries=entries)
    with open_checkpoint(first) as checkpoint:
        (found,) = checkpoint.findings
    assert found.rule == "WG109"
    assert found.message.isprintable()
    hostile = tmp_path / "m\x1b[31m\n::error.gguf"
    hostile.write_bytes(gguf_bytes(version=1))
    with pytest.raises(CheckpointError) as error:
        parsed(hostile)
    assert error.value.finding.message.isprintable()


@pytest.mark.parametrize("given", [0, 1, 2, None])
def test_split_models_open_from_any_part(tmp_path: Path, given: int | None) -> None:
    paths = split_model(tmp_path, PARTS)
    path = tmp_path if given is None else paths[given]
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.findings == ()
        assert [(t.name, t.shard) for t in checkpoint.tensors] == [
            (f"part {number}", PARTS[number]) for number in range(3)
        ]
        assert [t.read(0, 1)[0] for t in checkpoint.tensors] == [0, 1, 2]


def test_a_split_model_that_the_gguf_package_wrote(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    for number in range(5):
        writer.add_tensor(f"w{number}", np.full((2, 4), number, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.findings == ()
        assert [t.name for t in checkpoint.tensors] == [f"w{number}" for number in range(5)]
        assert [file.name for file in checkpoint.files] == PARTS


def test_split_names(tmp_path: Path) -> None:
    paths = split_model(tmp_path, PARTS)
    for path in paths:
        assert split_names(CheckpointFile(path, path.name)) == tuple(PARTS)
    whole = write(tmp_path / "whole.gguf")
    assert split_names(CheckpointFile(whole, whole.name)) == ()


@pytest.mark.parametrize(
    "change",
    [
        {b"split.no": 2},
        {b"split.no": 3},
        {b"split.count": 2},
        {b"split.count": 70_000},
    ],
)
def test_a_part_that_contradicts_its_name_is_refused(
    tmp_path: Path, change: dict[bytes, int]
) -> None:
    first, *_ = split_model(tmp_path, PARTS, part0=change)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(first)
    assert error.value.finding.rule in ("WG109", "WG116")
    assert error.value.finding.location.file == PARTS[0]


def test_a_renamed_part_is_refused(tmp_path: Path) -> None:
    first, *_ = split_model(tmp_path, PARTS)
    renamed = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(renamed)
    assert error.value.finding.rule == "WG109"


@pytest.mark.parametrize(
    "change", [{b"split.no": 0}, {b"split.count": 4}, {b"split.tensors.count": 9}]
)
def test_parts_that_disagree_are_findings(tmp_path: Path, change: dict[bytes, int]) -> None:
    first, *_ = split_model(tmp_path, PARTS, part1=change)
    with open_checkpoint(first) as checkpoint:
        assert [(f.rule, f.location.file) for f in checkpoint.findings] == [("WG109", PARTS[1])]
        assert len(checkpoint.tensors) == 3


def test_swapped_parts_are_refused(tmp_path: Path) -> None:
    first, second, _ = split_model(tmp_path, PARTS)
    aside = first.rename(tmp_path / "aside")
    second.rename(first)
    aside.rename(second)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(first)
    assert error.value.finding.rule == "WG109"


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first, second, _ = split_model(tmp_path, PARTS)
    second.unlink()
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(first)
    assert error.value.finding.rule == "WG122"
    assert error.value.finding.location.file == PARTS[1]


def test_a_part_of_another_format_is_refused(tmp_path: Path) -> None:
    first, second, _ = split_model(tmp_path, PARTS)
    second.write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(first)
    assert error.value.finding.rule == "WG101"


def test_a_tensor_in_two_parts_is_found(tmp_path: Path) -> None:
    first, second, _ = split_model(tmp_path, PARTS)
    second.write_bytes(second.read_bytes().replace(b"part 1", b"part 0"))
    with open_checkpoint(first) as checkpoint:
        assert [f.rule for f in checkpoint.findings] == ["WG104"]


@pytest.mark.real
def test_smollm2_against_the_gguf_package() -> None:
    expected = list(oracle(smollm2_gguf()))
    with open_checkpoint(smollm2_gguf()) as checkpoint:
        assert checkpoint.findings == ()
        assert [t.name for t in checkpoint.tensors] == [name for name, *_ in expected]
        for tensor, other in list(zip(checkpoint.tensors, expected, strict=True))[::9]:
            assert described(tensor) == other
        assert checkpoint.metadata["general.architecture"] == "llama"


@pytest.mark.real
def test_smollm2_is_clean() -> None:
    report = audit(smollm2_gguf())
    assert report.complete
    assert report.at_least(Severity.WARNING) == ()


@pytest.mark.real
def test_a_split_of_smollm2_has_the_same_tensor_digests(tmp_path: Path) -> None:
    whole = tmp_path / "model.gguf"
    shutil.copyfile(smollm2_gguf(), whole)
    reader = gguf.GGUFReader(whole)
    folder = tmp_path / "split"
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", split_max_tensors=100)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    split, one = fingerprint(folder).document.tensors, fingerprint(whole).document.tensors
    assert split.keys() == one.keys()
    assert all(split[name].digest == one[name].digest for name in one)
