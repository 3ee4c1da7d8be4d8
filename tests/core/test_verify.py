"""verify(): every way a checkpoint can differ from its manifest has its finding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import Tensors, random_tensor, write_safetensors, write_sharded
from weightguard import ManifestError, fingerprint, verify
from weightguard.finding import Finding

BASE = {
    "a.weight": random_tensor("BF16", (70, 128), 1),
    "b.weight": random_tensor("F32", (70, 70), 2),
    "c.bias": random_tensor("F16", (300,), 3),
}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "trusted.weightguard.json"
    with fingerprint(write_safetensors(tmp_path / "base.safetensors", BASE)) as made:
        made.write(path)
    return path


def findings(tmp_path: Path, manifest: Path, tensors: Tensors) -> tuple[Finding, ...]:
    return verify(write_safetensors(tmp_path / "new.safetensors", tensors), manifest).findings


def retype(tensors: Tensors) -> Tensors:
    _, shape, data = tensors["c.bias"]
    return {**tensors, "c.bias": ("BF16", shape, data)}


def reshape(tensors: Tensors) -> Tensors:
    dtype, _, data = tensors["c.bias"]
    return {**tensors, "c.bias": (dtype, (3, 100), data)}


def rename(tensors: Tensors) -> Tensors:
    return {("z.bias" if name == "c.bias" else name): t for name, t in tensors.items()}


def copy_under_new_name(tensors: Tensors) -> Tensors:
    return {**tensors, "d.bias": tensors["c.bias"]}


@pytest.mark.parametrize(
    ("change", "rule", "tensor"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "b.weight"}, "WG402", "b.weight"),
        (lambda t: {**t, "d": random_tensor("F32", (9,), 9)}, "WG403", "d"),
        (reshape, "WG404", "c.bias"),
        (retype, "WG405", "c.bias"),
        (rename, "WG406", "z.bias"),
        (copy_under_new_name, "WG403", "d.bias"),
    ],
)
def test_each_difference_has_its_one_finding(
    tmp_path: Path,
    manifest: Path,
    change: Callable[[Tensors], Tensors],
    rule: str,
    tensor: str,
) -> None:
    (found,) = findings(tmp_path, manifest, change(BASE))
    assert (found.rule, found.location.tensor) == (rule, tensor)


def test_equal_tensors_in_other_shards_are_equal(tmp_path: Path, manifest: Path) -> None:
    shards: list[Tensors] = [{n: BASE[n]} for n in reversed(BASE)]
    assert verify(write_sharded(tmp_path / "sharded", shards), manifest).findings == ()


def test_swapped_tensors_are_both_found(tmp_path: Path, manifest: Path) -> None:
    base = {**BASE, "e.bias": random_tensor("F16", (300,), 5)}
    path = tmp_path / "swap.weightguard.json"
    with fingerprint(write_safetensors(tmp_path / "base2.safetensors", base)) as made:
        made.write(path)
    swapped = {**base, "c.bias": base["e.bias"], "e.bias": base["c.bias"]}
    rules = [(f.rule, f.location.tensor) for f in findings(tmp_path, path, swapped)]
    assert rules == [("WG401", "c.bias"), ("WG401", "e.bias")]


def test_one_flip_is_located_with_values(tmp_path: Path, manifest: Path) -> None:
    dtype, shape, data = BASE["a.weight"]
    damaged = bytearray(data)
    element = 33 * 128 + 77
    damaged[2 * element + 1] ^= 0x40
    (found,) = findings(tmp_path, manifest, {**BASE, "a.weight": (dtype, shape, bytes(damaged))})
    assert found.location.element == (33, 77)
    (change,) = found.evidence["elements"]
    assert change["flipped_bits"] == [14]
    assert change["confirmed"]
    assert abs(float(change["new"])) > 1e30
    assert abs(float(change["old"])) < 1


def test_a_copy_that_nobody_attested_is_an_error_and_says_what_it_copies(
    tmp_path: Path, manifest: Path
) -> None:
    (found,) = findings(tmp_path, manifest, copy_under_new_name(BASE))
    assert found.severity == "error"
    assert found.message.endswith("it is a copy of 'c.bias'")


@pytest.mark.parametrize("dtype", ["I64", "U64", "F64", "C64"])
def test_both_words_of_an_element_are_one_change(tmp_path: Path, dtype: str) -> None:
    name, shape, data = random_tensor(dtype, (50, 70), 4)
    path = tmp_path / "wide.weightguard.json"
    with fingerprint(
        write_safetensors(tmp_path / "wide.safetensors", {"w": (name, shape, data)})
    ) as made:
        made.write(path)
    damaged = bytearray(data)
    places = {(3, 17): 0xFFFF_0000_0000_0001, (40, 69): 0x8000_0000_0F00_0000}
    for (row, column), flips in places.items():
        at = 8 * (70 * row + column)
        value = int.from_bytes(damaged[at : at + 8], "little") ^ flips
        damaged[at : at + 8] = value.to_bytes(8, "little")
    (found,) = findings(tmp_path, path, {"w": (name, shape, bytes(damaged))})
    elements = found.evidence["elements"]
    assert {tuple(e["index"]) for e in elements} == set(places)
    assert all(e["confirmed"] for e in elements)
    if dtype != "C64":
        assert {int(e["old_bits"], 16) ^ int(e["new_bits"], 16) for e in elements} == set(
            places.values()
        )


def test_what_the_residues_cannot_tell_is_not_claimed(tmp_path: Path) -> None:
    name, shape, data = random_tensor("I64", (50, 200), 4)
    path = tmp_path / "wide.weightguard.json"
    with fingerprint(
        write_safetensors(tmp_path / "wide.safetensors", {"w": (name, shape, data)})
    ) as made:
        made.write(path)
    damaged = bytearray(data)
    # the sum stays, so nothing tells where the two words are
    low, high = (int.from_bytes(damaged[at : at + 4], "little") for at in (80, 84))
    damaged[80:84], damaged[84:88] = high.to_bytes(4, "little"), low.to_bytes(4, "little")
    (found,) = findings(tmp_path, path, {"w": (name, shape, bytes(damaged))})
    assert found.message == (
        "1 block and 1 residue row differ; one element or several changed in each of these rows"
    )


def test_two_changes_in_a_row_are_never_confirmed_as_one(tmp_path: Path, manifest: Path) -> None:
    dtype, shape, data = BASE["a.weight"]
    damaged = bytearray(data)
    damaged[0] ^= 1
    damaged[100] ^= 1
    (found,) = findings(tmp_path, manifest, {**BASE, "a.weight": (dtype, shape, bytes(damaged))})
    assert found.evidence["rows"] == [0]
    assert not any(element["confirmed"] for element in found.evidence["elements"])


def test_file_digests_find_changed_metadata(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", BASE)
    target = tmp_path / "m.weightguard.json"
    with fingerprint(path, file_digests=True) as made:
        made.write(target)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = {"__metadata__": {"format": "pt"}, **json.loads(data[8 : 8 + size])}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    (found,) = verify(path, target).findings
    assert (found.rule, found.location.file) == ("WG407", "m.safetensors")


def replace_text(old: str, new: str) -> Callable[[Path], None]:
    def change(manifest: Path) -> None:
        manifest.write_text(manifest.read_text().replace(old, new))

    return change


def remove_sidecar(manifest: Path) -> None:
    next(manifest.parent.glob("*.sidecar")).unlink()


def alter_sidecar(manifest: Path) -> None:
    sidecar = next(manifest.parent.glob("*.sidecar"))
    data = bytearray(sidecar.read_bytes())
    data[-1] ^= 1
    sidecar.write_bytes(data)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(manifest: Path) -> None:
        document = json.loads(manifest.read_text())
        change(document)
        manifest.write_text(json.dumps(document))

    return damage


def tensor_of(document: dict[str, Any]) -> dict[str, Any]:
    tensor: dict[str, Any] = document["tensors"]["c.bias"]
    return tensor


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(weights="0" * 64), "contradicts itself: its tensors amount"),
        (lambda d: tensor_of(d).update(digest="blake3:" + "0" * 64), "its tensors amount"),
        (lambda d: tensor_of(d).update(aliases=["d.bias"]), "its tensors amount"),
        (lambda d: tensor_of(d).update(aliases=["a.weight"]), "one name to several"),
        (lambda d: tensor_of(d).update(digest="sha256:" + "0" * 64), "has no blake3 digest"),
        (lambda d: tensor_of(d)["statistics"].update(nan=1), "statistics of 301 values"),
        (lambda d: tensor_of(d)["statistics"].update(zero=301), "more zeros"),
        (lambda d: tensor_of(d)["statistics"].update(scalar="F32"), "statistics of 'F32'"),
        (lambda d: tensor_of(d)["statistics"].update(min=None), "does not fit its counts"),
        (lambda d: tensor_of(d)["statistics"].update(mean=99.0), "mean outside"),
        (lambda d: tensor_of(d)["statistics"].update(rms=99.0), "root mean square"),
        (lambda d: tensor_of(d)["statistics"]["max"].update(value=9.0), "bits and values"),
        (lambda d: tensor_of(d)["statistics"]["max"].update(bits="0xfffffff"), "bits and values"),
        (
            lambda d: tensor_of(d)["statistics"].update(absmax={"bits": "0x3c00", "value": 1.0}),
            "none of its extremes",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_an_error(
    tmp_path: Path, manifest: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(change)(manifest)
    with pytest.raises(ManifestError, match=words):
        verify(tmp_path / "base.safetensors", manifest)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (replace_text("weightguard-manifest-v1", "weightguard-manifest-v7"), "too old"),
        (replace_text("weightguard-manifest-v1", "something"), "not a weightguard manifest"),
        (replace_text('"tensors"', '"tensor"'), "not a valid"),
        (replace_text('"BF16"', '"BF17"'), "unknown dtype"),
        (replace_text("blake3:", "blake9:"), "not a valid"),
        (replace_text(".sidecar", "/../x.sidecar"), "not a valid"),
        (lambda manifest: manifest.write_bytes(b""), "not a valid"),
        (lambda manifest: manifest.write_bytes(b"[" * 100_000), "not a valid"),
        (lambda manifest: manifest.unlink(), "cannot read"),
        (remove_sidecar, "sidecar"),
        (alter_sidecar, "not the one"),
    ],
)
def test_unusable_manifests_are_errors(
    tmp_path: Path, manifest: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(manifest)
    with pytest.raises(ManifestError, match=words):
        verify(tmp_path / "base.safetensors", manifest)
