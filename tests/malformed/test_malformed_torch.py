"""Malformed and hostile PyTorch zips: each gives exactly the finding that the table says."""

from __future__ import annotations

import io
import struct
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.torch_archives import (
    PROTO,
    STOP,
    VALUES,
    Entry,
    Zip,
    archive,
    call,
    entries,
    name,
    number,
    numbers,
    pickled,
    storage,
    table,
    tensor,
    text,
    tuple_of,
)
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.torch_zip import parse_torch
from weightguard.errors import CheckpointError


@dataclass(frozen=True)
class Case:
    id: str
    build: Callable[[], bytes]
    rule: str
    fatal: bool = True


def changed(position: int = 2, **fields: object) -> Callable[[], bytes]:
    """Return a sound archive with fields of one record (the data by default) replaced."""

    def build() -> bytes:
        records = entries()
        records[position] = replace(records[position], **fields)  # type: ignore[arg-type]
        return Zip(records).build()

    return build


def whole(**fields: object) -> Callable[[], bytes]:
    return lambda: Zip(entries(), **fields).build()  # type: ignore[arg-type]


def holding(value: bytes, data: bytes = VALUES) -> Callable[[], bytes]:
    return lambda: archive(pickled(value), data=data)


def raw(pickle: bytes) -> Callable[[], bytes]:
    return lambda: archive(pickle)


def adding(record: str, data: bytes = b"x") -> Callable[[], bytes]:
    return lambda: archive(None, Entry(record, data))


def view(*arguments: object, **keywords: object) -> Callable[[], bytes]:
    return holding(table(w=tensor(storage(), *arguments, **keywords)))  # type: ignore[arg-type]


def zip_64(**values: int) -> bytes:
    field = {"size": 44, "disk": 0, "here": 4, "count": 4, "length": 0, "offset": 0} | values
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", field["size"], 45, 45, field["disk"], 0, field["here"],
        field["count"], field["length"], field["offset"],
    )  # fmt: skip
    return record + struct.pack("<4sLQL", b"PK\x06\x07", 0, field.get("at", 0), 1)


def with_zip_64(**values: int) -> Callable[[], bytes]:
    def build() -> bytes:
        plain = Zip(entries()).build()
        length, offset = struct.unpack("<2L", plain[-10:-2])
        right = {"length": length, "offset": offset, "at": offset + length}
        return Zip(entries(), end_64=zip_64(**(right | values))).build()

    return build


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive_:
        archive_.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


def deflated() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive_:
        for entry in entries():
            archive_.writestr(str(entry.name), entry.data * 10)
    return out.getvalue()


def nest(levels: int) -> bytes:
    return PROTO + (b"}" + text("k")) * levels + tensor() + b"s" * levels + STOP


def laughing() -> bytes:
    """Return lists of ten references to the list below, twelve levels deep."""
    value = b"]q\x00"
    for level in range(1, 13):
        value += b"](" + (b"h" + bytes([level - 1])) * 10 + b"eq" + bytes([level])
    # all levels but the last are left on the stack, and go into one tuple
    return PROTO + b"(" + value + b"t" + STOP


def own_list() -> bytes:
    return PROTO + b"]q\x00h\x00a" + STOP


def shape_of(sizes: bytes, strides: bytes, offset: bytes = number(0)) -> Callable[[], bytes]:
    hooks = call("collections.OrderedDict")
    built = call(
        "torch._utils._rebuild_tensor_v2", storage(), offset, sizes, strides, b"\x89", hooks
    )
    return holding(table(w=built))


def from_type(function: str, kind: str) -> Callable[[], bytes]:
    state = (storage(), number(0), numbers(4), numbers(1))
    built = call(
        "torch._tensor._rebuild_from_type_v2", name(function), name(kind), tuple_of(*state), b"}"
    )
    return holding(table(w=built))


def quantised(*parameters: bytes, scheme: str = "torch.per_tensor_affine") -> Callable[[], bytes]:
    quantiser = tuple_of(name(scheme), *parameters)
    view = (storage(count=16, kind="torch.QInt8Storage"), number(0), numbers(4), numbers(1))
    hooks = call("collections.OrderedDict")
    built = call("torch._utils._rebuild_qtensor", *view, quantiser, b"\x89", hooks)
    return holding(table(w=built))


FLOAT = b"G" + struct.pack(">d", 0.5)
WEIGHTS = table(w=tensor())

CASES = [
    # the file as a whole
    Case("empty", lambda: b"", "WG101"),
    Case("legacy-pickle", lambda: b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "WG114"),
    Case("tar", tar, "WG114"),
    Case("cut-in-data", lambda: archive()[:300], "WG102"),
    Case("cut-end-record", lambda: archive()[:-1], "WG102"),
    Case("without-end-record", lambda: archive()[:-22], "WG102"),
    Case("empty-archive", lambda: Zip().build(), "WG101"),
    Case("no-data-pkl", lambda: Zip(entries()[1:]).build(), "WG101"),
    # the end record and the directory
    Case("trailing-byte", whole(after=b"\0"), "WG117"),
    Case("trailing-page", whole(after=bytes(4096)), "WG117"),
    Case("comment", whole(comment=b"hello"), "WG117"),
    Case("prepended", whole(before=b"#!/bin/sh\n"), "WG117"),
    Case("prepended-uncounted", lambda: b"MZ" + archive(), "WG117"),
    Case("gap-before-end", whole(gap=b"\0" * 8), "WG117"),
    Case("too-many-records", whole(count=65535), "WG117"),
    Case("too-few-records", whole(count=3), "WG117"),
    Case("directory-past-end", whole(directory_offset=0xFFFFFFF0), "WG117"),
    Case("directory-too-long", whole(directory_size=1 << 31), "WG116"),
    Case("multi-disk", whole(disk=1), "WG117"),
    Case("record-on-disk-2", changed(disk=1), "WG117"),
    Case("zip64-other-count", with_zip_64(here=5, count=5), "WG117"),
    Case("zip64-count-of-2^62", with_zip_64(here=1 << 62, count=1 << 62), "WG117"),
    Case("zip64-other-offset", with_zip_64(offset=0), "WG117"),
    Case("zip64-elsewhere", with_zip_64(at=0), "WG117"),
    Case("zip64-extensible", with_zip_64(size=1000), "WG117"),
    Case("zip64-multi-disk", with_zip_64(disk=1), "WG117"),
    Case("record-comment", changed(comment=b"x"), "WG117"),
    # records
    Case("compressed", deflated, "WG117"),
    Case("encrypted", changed(flags=0x0801), "WG117"),
    Case("strange-flags", changed(flags=0x2800), "WG117"),
    Case("duplicate-record", lambda: archive(None, Entry("a/data/0", VALUES)), "WG117"),
    Case("duplicate-data-pkl", adding("a/data.pkl"), "WG117"),
    Case("duplicate-but-for-case", adding("a/DATA.pkl"), "WG117"),
    Case("second-data-pkl-deeper", adding("a/b/data.pkl"), "WG117"),
    Case("second-archive", adding("b/data.pkl"), "WG117"),
    Case("record-outside-folder", adding("b/x"), "WG117"),
    Case("record-parent-path", adding("a/../x"), "WG117"),
    Case("record-absolute", adding("/a/x"), "WG117"),
    Case("record-backslash", adding("a\\x"), "WG117"),
    Case("record-escape-sequence", adding("a/\x1b[31m"), "WG117"),
    Case("record-newline", adding("a/\n::error::x"), "WG117"),
    Case("record-name-of-60000", adding("a/" + "x" * 60_000), "WG117"),
    Case("record-not-utf-8", lambda: archive(None, Entry(b"a/\xff", b"")), "WG117"),
    Case("local-other-name", changed(local_name=b"a/data/1"), "WG117"),
    Case("local-other-size", changed(local_size=15), "WG117"),
    Case("local-other-crc", changed(local_crc=1), "WG117"),
    Case("local-other-flags", changed(local_flags=0x0808), "WG117"),
    Case("stored-in-fewer-bytes", changed(packed=8), "WG117"),
    Case("size-past-next", changed(size=17, local_size=17), "WG117"),
    Case("size-of-4-gib", changed(size=0xFFFFFFFE, local_size=0xFFFFFFFE), "WG117"),
    Case("size-wraps-in-zip64", changed(
        size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=struct.pack("<2H2Q", 1, 16, 2**64 - 1, 2**64 - 1)
    ), "WG117"),
    Case("zip64-field-short", changed(
        size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=struct.pack("<2HQ", 1, 8, 16)
    ), "WG117"),
    Case("extra-field-cut", changed(extra=struct.pack("<2H", 1, 16)), "WG117"),
    Case("overlap", changed(offset=0), "WG117"),
    Case("record-past-end", changed(offset=1 << 30), "WG117"),
    Case("hole-after-record", changed(after=b"\0" * 7), "WG117"),
    Case("descriptor-missing", changed(flags=0x0808), "WG117"),
    Case("descriptor-unannounced", changed(
        after=struct.pack("<4s3L", b"PK\x07\x08", 0, 16, 16)
    ), "WG117"),
    Case("descriptor-other-crc", changed(
        flags=0x0808, after=struct.pack("<4s3L", b"PK\x07\x08", 0, 16, 16)
    ), "WG117"),
    # small records
    Case("big-endian", lambda: Zip(entries(order=b"big")).build(), "WG119"),
    Case("strange-byte-order", lambda: Zip(entries(order=b"middle")).build(), "WG103"),
    Case("version-of-1-mib", lambda: archive(None, Entry("a/.format_version", bytes(1 << 20))),
         "WG116"),
    Case("damaged-pickle", changed(0, crc=1), "WG113"),
    Case("damaged-byte-order", changed(1, crc=1), "WG113"),
    Case("damaged-version", changed(3, crc=1), "WG113"),
    Case("torchscript-constants", adding("a/constants.pkl"), "WG119"),
    Case("torchscript-code", adding("a/code/__torch__.py"), "WG119"),
    Case("stranger", adding("a/README"), "WG105", fatal=False),
    Case("unused-storage", adding("a/data/1"), "WG105", fatal=False),
    # the pickle's opcodes
    Case("pickle-empty", raw(b""), "WG103"),
    Case("pickle-without-stop", raw(PROTO + WEIGHTS), "WG103"),
    Case("pickle-with-tail", raw(PROTO + WEIGHTS + STOP + b"x"), "WG103"),
    Case("pickle-leftover", raw(PROTO + WEIGHTS + WEIGHTS + STOP), "WG103"),
    Case("pickle-open-mark", raw(PROTO + b"(" + WEIGHTS + STOP), "WG103"),
    Case("pickle-protocol-0", raw(b"\x80\x00" + WEIGHTS + STOP), "WG103"),
    Case("pickle-protocol-9", raw(b"\x80\x09" + WEIGHTS + STOP), "WG103"),
    Case("pickle-unknown-opcode", raw(PROTO + b"\xff" + STOP), "WG112"),
    Case("pickle-text-past-end", raw(PROTO + b"X\xff\x00\x00\x00ab" + STOP), "WG103"),
    Case("pickle-text-of-4-gib", raw(PROTO + b"X\xff\xff\xff\xffab" + STOP), "WG103"),
    Case("pickle-text-of-2^63", raw(PROTO + b"\x8d" + b"\xff" * 8 + STOP), "WG112"),
    Case("pickle-frame-past-end", raw(PROTO + b"\x95" + b"\xff" * 8 + STOP), "WG103"),
    Case("pickle-text-not-utf-8", raw(PROTO + text(b"\xff") + STOP), "WG103"),
    Case("pickle-empty-stack", raw(PROTO + b"\x85" + STOP), "WG103"),
    Case("pickle-memo-never-stored", raw(PROTO + b"h\x07" + STOP), "WG103"),
    Case("pickle-endless-name", raw(PROTO + b"c" + b"x" * 5000 + STOP), "WG103"),
    Case("pickle-long-name", raw(PROTO + b"c" + b"x" * 5000 + b"\nsystem\n" + STOP), "WG112"),
    Case("pickle-append-to-dict", raw(PROTO + b"}Na" + STOP), "WG112"),
    Case("pickle-item-of-list", raw(PROTO + b"]NNs" + STOP), "WG112"),
    Case("pickle-odd-items", raw(PROTO + b"}(Nu" + STOP), "WG103"),
    Case("pickle-two-million-marks", raw(PROTO + b"(" * 2_000_000), "WG116"),
    Case("pickle-two-million-values", raw(PROTO + b"N" * 2_000_000), "WG103"),
    # what the pickle asks for
    Case("call-system", holding(call("os.system", text("touch /tmp/owned"))), "WG112"),
    Case("call-eval", holding(call("builtins.eval", text("1"))), "WG112"),
    Case("call-getattr", holding(call("__builtin__.getattr", text("a"), text("b"))), "WG112"),
    Case("name-only", holding(name("os.system")), "WG112"),
    Case("name-inside-dict", holding(table(w=tensor(), x=name("subprocess.Popen"))), "WG112"),
    Case("name-then-garbage", raw(PROTO + name("os.system") + b"\xff"), "WG112"),
    Case("stacked-name", raw(b"\x80\x04" + text("os") + text("system") + b"\x93" + STOP), "WG112"),
    Case("torch-load", holding(call("torch.load", text("x"))), "WG112"),
    Case("near-miss-name", holding(name("torch._utils._rebuild_tensor_v2.x")), "WG112"),
    Case("inst", raw(PROTO + b"(" + text("id") + b"ios\nsystem\n" + STOP), "WG112"),
    Case("obj", raw(PROTO + b"(" + name("os.system") + text("id") + b"o" + STOP), "WG112"),
    Case("newobj", raw(PROTO + name("os.system") + b")\x81" + STOP), "WG112"),
    Case("newobj-of-allowed", raw(PROTO + name("torch.Size") + b")\x81" + STOP), "WG112"),
    Case("protocol-0", raw(b"(S'id'\nios\nsystem\n."), "WG112"),
    Case("protocol-0-stray", raw(b"I1\n0cos\nsystem\n(S'id'\ntR."), "WG112"),
    Case("legacy-system", lambda: pickled(call("os.system", text("id"))), "WG112"),
    Case("extension", raw(PROTO + b"\x82\x01" + STOP), "WG112"),
    Case("call-of-a-dtype", holding(call("torch.float32")), "WG112"),
    Case("call-of-text", raw(PROTO + text("os.system") + b")R" + STOP), "WG112"),
    Case("state-of-a-tensor", holding(tensor() + b"}b"), "WG112"),
    Case("state-no-dict", holding(b"}]b"), "WG112"),
    Case("foreign-tensor-class", from_type("torch._utils._rebuild_tensor", "evil.Tensor"), "WG112"),
    Case("class-is-a-dtype", from_type("torch._utils._rebuild_tensor", "torch.float32"), "WG103"),
    Case("type-of-a-dict", from_type("collections.OrderedDict", "torch.Tensor"), "WG103"),
    Case("hostile-name", raw(PROTO + b"c\x1b[31m::error\n" + b"x" * 900 + b"\n" + STOP), "WG112"),
    # builders' arguments
    Case("tensor-of-nothing", holding(call("torch._utils._rebuild_tensor_v2")), "WG103"),
    Case("tensor-of-text", holding(call(
        "torch._utils._rebuild_tensor", *[text("x")] * 4
    )), "WG103"),
    Case("call-without-tuple", raw(PROTO + name("torch.Size") + b"NR" + STOP), "WG103"),
    Case("persistent-text", raw(PROTO + text("storage") + b"Q" + STOP), "WG103"),
    Case("persistent-short", raw(PROTO + tuple_of(text("storage")) + b"Q" + STOP), "WG103"),
    Case("shape-of-bool", shape_of(tuple_of(b"\x88"), numbers(1)), "WG103"),
    Case("shape-of-float", shape_of(tuple_of(b"G" + bytes(8)), numbers(1)), "WG103"),
    Case("shape-of-65-sizes", shape_of(numbers(*[1] * 65), numbers(*[1] * 65)), "WG103"),
    Case("unknown-metadata", view(0, (4,), (1,), table(evil=b"\x88")), "WG119", fatal=False),
    Case("scale-of-text", quantised(text("0.1"), number(0)), "WG103"),
    Case("zero-point-of-2^64", quantised(FLOAT, number(1 << 64)), "WG103"),
    Case("scale-tensor-alone", quantised(tensor(), number(0)), "WG103"),
    Case("channels-without-axis", quantised(tensor(), tensor()), "WG103"),
    Case("axis-negative", quantised(tensor(), tensor(), number(-1)), "WG103"),
    Case("number-with-axis", quantised(FLOAT, number(0), number(0)), "WG103"),
    Case("scheme-is-a-dtype", quantised(FLOAT, number(0), scheme="torch.float32"), "WG103"),
    # tensors against their storages
    Case("more-strides-than-sizes", view(0, (4,), (1, 1)), "WG103"),
    Case("storage-of-other-size", holding(table(w=tensor(storage(count=5)))), "WG107"),
    Case("storage-negative", holding(table(w=tensor(storage(count=-4)))), "WG103"),
    Case("storage-of-2^2000", holding(table(w=tensor(storage(count=1 << 2000)))), "WG103"),
    Case("storage-of-other-type", holding(table(
        w=tensor(storage(kind="torch.DoubleStorage"))
    )), "WG107"),
    Case("storage-absent", holding(table(w=tensor(storage("7")))), "WG106"),
    Case("storage-path", holding(table(w=tensor(storage("../data.pkl")))), "WG106"),
    Case("one-element-too-many", view(0, (5,), (1,)), "WG106"),
    Case("offset-past-end", view(1), "WG106"),
    Case("offset-negative", view(-1), "WG103"),
    Case("offset-of-empty-past-end", view(5, (0,), (1,)), "WG106"),
    Case("stride-negative", view(3, (4,), (-1,)), "WG103"),
    Case("stride-too-wide", view(0, (2, 2), (3, 1)), "WG106"),
    Case("size-negative", view(0, (-4,), (1,)), "WG103"),
    Case("size-of-2^63", view(0, (1 << 63,), (0,)), "WG103"),
    Case("size-of-2^2000", view(0, (1 << 2000,), (1,)), "WG103"),
    Case("offset-of-2^2000", view(1 << 2000), "WG103"),
    Case("product-wraps", view(0, (1 << 33, 1 << 33), (1, 1)), "WG106"),
    Case("expansion-of-4-gib", view(0, (1 << 30,), (0,)), "WG116", fatal=False),
    Case("expansion-of-2^124", view(0, (1 << 61, 1 << 61), (0, 0)), "WG116", fatal=False),
    Case("unknown-dtype", lambda: archive(pickled(table(w=call(
        "torch._utils._rebuild_tensor_v3", storage(count=16, kind="torch.UntypedStorage"),
        number(0), numbers(4), numbers(1), b"\x89", call("collections.OrderedDict"),
        name("torch.complex32"),
    )))), "WG108", fatal=False),
    Case("sparse", holding(table(x=tensor(), w=call(
        "torch._utils._rebuild_sparse_tensor", text("layout"), b")"
    ))), "WG119", fatal=False),
    Case("conjugated-reals", view(0, (4,), (1,), table(conj=b"\x88")), "WG119", fatal=False),
    Case("name-twice", holding(b"}(" + text("w") + tensor() + text("w") + tensor() + b"u"),
         "WG104", fatal=False),
    Case("name-twice-by-dots", holding(
        b"}(" + text("a.w") + tensor() + text("a") + table(w=tensor()) + b"u"
    ), "WG104", fatal=False),
    Case("tensor-under-tuple-key", holding(b"})" + tensor() + b"s"), "WG119", fatal=False),
    # containers
    Case("nested-1000-deep", lambda: archive(nest(1000)), "WG116"),
    Case("list-in-itself", lambda: archive(own_list()), "WG116"),
    Case("billion-laughs", lambda: archive(laughing()), "WG116"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_each_violation_is_one_finding(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(case.build())
    file = CheckpointFile(path, "model.pt")
    modules = set(sys.modules)
    started = time.process_time()
    if case.fatal:
        with pytest.raises(CheckpointError) as caught:
            parse_torch(file)
        found = caught.value.finding
    else:
        (found,) = parse_torch(file).findings
    file.close()
    assert time.process_time() - started < 60
    assert set(sys.modules) == modules
    assert found.rule == case.rule
    assert found.location.file == "model.pt"
    assert found.location.offset is not None
    assert found.remedy
    assert found.message.isprintable()
    assert len(found.message) < 500


def test_case_names_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


def test_the_sound_archive_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    for data in (archive(), with_zip_64()()):
        path.write_bytes(data)
        file = CheckpointFile(path, "model.pt")
        parsed = parse_torch(file)
        (tensor_,) = parsed.tensors
        assert parsed.findings == ()
        assert (tensor_.name, bytes(tensor_.read())) == ("w", VALUES)
        file.close()


def test_refused_names_are_all_listed(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    value = tuple_of(name("os.system"), name("torch.Size"), name("nt.system"))
    path.write_bytes(archive(pickled(value)))
    file = CheckpointFile(path, "model.pt")
    with pytest.raises(CheckpointError, match=r"'os\.system', 'nt\.system'"):
        parse_torch(file)
    file.close()


@pytest.mark.parametrize(
    ("pickle", "named"),
    [
        (b"(S'id'\nios\nsystem\n.", "'os.system'"),
        (b"I1\n0c__builtin__\neval\n(S'1'\ntR.", "'builtins.eval'"),
        (PROTO + b"\xffcos\nsystem\n.", None),
        (b"\x80\x04I1\n\x8c\x02os\x94\x8c\x06system\x94\x93.", "'os.system'"),
        (b"\x80\x04I1\n0X\x02\0\0\0osq\x00X\x06\0\0\0systemq\x010h\x00h\x01\x93.", "'os.system'"),
        (PROTO + b"c" + b"m" * (1 << 20) + b"\nsystem\n.", r"'m{40}\.\.\.m+\.system'"),
        (PROTO + b"cos\n" + b"s" * (1 << 20) + b"\n.", r"'os\.s+\.\.\.s+'"),
        (PROTO + tuple_of(call("torch.Size", text("x"))) + name("os.system") + STOP, "'os.system'"),
    ],
)
def test_a_refused_pickle_says_what_it_asks_for(
    tmp_path: Path, pickle: bytes, named: str | None
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(archive(pickle))
    file = CheckpointFile(path, "model.pt")
    with pytest.raises(CheckpointError, match=named or "opcode 0xff") as caught:
        parse_torch(file)
    assert caught.value.finding.rule == "WG112"
    assert len(caught.value.finding.message) < 300
    file.close()


def test_what_a_refused_pickle_holds_is_read_in_bounded_time(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    file_bytes = archive(b"I1\n" + b"0" * (32 << 20) + b"cos\nsystem\n.")
    path.write_bytes(file_bytes)
    file = CheckpointFile(path, "model.pt")
    started = time.process_time()
    with pytest.raises(CheckpointError, match="opcode 0x49"):
        parse_torch(file)
    assert time.process_time() - started < 30
    file.close()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_module_names_its_classes(tmp_path: Path, legacy: bool) -> None:
    import torch

    path = tmp_path / "model.bin"
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=not legacy)
    file = CheckpointFile(path, "model.bin")
    with pytest.raises(CheckpointError, match=r"'torch\.nn\.modules\.linear\.Linear'"):
        parse_torch(file)
    torch.save({"w": torch.zeros(4)}, path, _use_new_zipfile_serialization=not legacy)
    file.close()
    file = CheckpointFile(path, "model.bin")
    if legacy:
        with pytest.raises(CheckpointError, match=r"before 1\.6"):
            parse_torch(file)
    else:
        assert parse_torch(file).findings == ()
    file.close()
