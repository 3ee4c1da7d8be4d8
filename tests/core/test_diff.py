"""What became of a model: values beside values, manifests beside manifests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.checkpoints import Tensors, random_tensor, safetensors_bytes, write_safetensors
from tests.real_models import bf16, smollm2_bf16, smollm2_gguf
from weightguard import diff, fingerprint, open_checkpoint
from weightguard.diff import Diff
from weightguard.drift import DriftLimits, TensorChange
from weightguard.errors import CheckpointError, ManifestError, WeightguardError
from weightguard.scan.values import iterate_values

F32 = ("F32", (64, 64))
DOWN = "model.layers.11.mlp.down_proj.weight"


def values(tensor: tuple[str, tuple[int, ...], bytes]) -> NDArray[np.float32]:
    dtype, _, data = tensor
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(data, "<f4")


def compared(tmp_path: Path, base: Tensors, new: Tensors, **options: object) -> Diff:
    return diff(
        write_safetensors(tmp_path / "base.safetensors", base),
        write_safetensors(tmp_path / "new.safetensors", new),
        **options,  # type: ignore[arg-type]
    )


def only(found: Diff) -> TensorChange:
    (change,) = found.tensors
    return change


@settings(max_examples=40)
@given(
    data=st.data(),
    kind=st.sampled_from(["BF16", "F16", "F32"]),
    rows=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_measures_are_those_of_numpy(
    data: st.DataObject, kind: str, rows: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    old = random_tensor("F32", (rows, 64), seed)
    new = random_tensor("F32", (rows, 64), data.draw(st.sampled_from([seed, seed + 1])))
    a, b = values(old), values(new)
    stored = {
        "BF16": lambda v: bf16(v).tobytes(),
        "F16": lambda v: v.astype("<f2").tobytes(),
        "F32": lambda v: v.tobytes(),
    }[kind](b)
    c = {
        "BF16": lambda: values((kind, (rows, 64), stored)),
        "F16": lambda: np.frombuffer(stored, "<f2").astype(np.float32),
        "F32": lambda: b,
    }[kind]()
    work = tmp_path_factory.mktemp("diff")
    change = only(compared(work, {"w": old}, {"w": (kind, (rows, 64), stored)}))
    a, c = a.astype(np.float64), c.astype(np.float64)
    assert change.relative_change == pytest.approx(np.linalg.norm(c - a) / np.linalg.norm(a))
    assert change.cosine == pytest.approx(c @ a / np.linalg.norm(a) / np.linalg.norm(c))
    assert change.changed == np.count_nonzero(a != c)
    assert change.new is not None
    assert (change.new.min, change.new.max) == (c.min(), c.max())
    assert change.new.rms == pytest.approx(np.sqrt(np.mean(c**2)))
    if change.changed:
        where = int(np.argmax(np.abs(c - a)))
        assert change.greatest_change == np.abs(c - a)[where]
        assert change.greatest_at == divmod(where, 64)
    if np.array_equal(a, b):
        assert change.status == ("unchanged" if kind == "F32" else "cast")
    else:
        assert change.status == "replaced"


def test_blocks_are_joined_whatever_the_threads(tmp_path: Path) -> None:
    shape = (700, 1024)
    base = {"w": random_tensor("F32", shape, 1)}
    moved = values(base["w"]) + np.float32(0.001)
    new = {"w": ("BF16", shape, bf16(moved).tobytes())}
    one, two = (compared(tmp_path, base, new, threads=n) for n in (1, 4))
    assert one == two
    assert only(one).changed == 700 * 1024
    assert only(one).relative_change == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("base", "new", "status"),
    [
        ({"w": (*F32, bytes(16384))}, {"w": random_tensor(*F32)}, "replaced"),
        ({"w": random_tensor(*F32)}, {"w": (*F32, bytes(16384))}, "replaced"),
        ({"w": (*F32, bytes(16384))}, {"w": (*F32, bytes(16384))}, "unchanged"),
        ({"w": random_tensor("F32", (64, 64))}, {"w": random_tensor("F32", (32, 128))}, "reshaped"),
        ({"w": random_tensor("F32", (0, 4))}, {"w": random_tensor("F32", (0, 4))}, "unchanged"),
        ({"w": random_tensor("I8", (64,), 1)}, {"w": random_tensor("I8", (64,), 1)}, "unchanged"),
        ({"w": random_tensor("C64", (64,), 1)}, {"w": random_tensor("C64", (64,), 2)}, "replaced"),
        ({"w": random_tensor("F32", (64,), 1)}, {}, "removed"),
        ({}, {"w": random_tensor("F32", (64,), 1)}, "added"),
    ],
)
def test_status(base: Tensors, new: Tensors, status: str, tmp_path: Path) -> None:
    assert only(compared(tmp_path, base, new)).status == status


def holding(places: dict[int, float]) -> tuple[str, tuple[int, ...], bytes]:
    """Return the random tensor with some values in other values' places."""
    changed = values(random_tensor(*F32)).copy()
    changed[[*places]] = [*places.values()]
    return (*F32, changed.tobytes())


@pytest.mark.parametrize(
    ("odd", "words", "counts"),
    [
        ({70: np.nan}, "1 NaN, the first at [1,6]", (1, 0)),
        ({70: np.inf}, "1 infinity, the first at [1,6]", (0, 1)),
        ({4000: -np.inf, 70: np.nan, 71: np.nan, 9: np.inf},
         "2 NaN and 2 infinities, the first at [0,9]", (2, 2)),
    ],
)  # fmt: skip
def test_nan_and_infinities_are_told_as_such(
    odd: dict[int, float], words: str, counts: tuple[int, int], tmp_path: Path
) -> None:
    sound, harmed, limits = random_tensor(*F32), holding(odd), DriftLimits(max_change=10)
    found = compared(tmp_path, {"w": sound}, {"w": harmed}, limits=limits)
    change, first = only(found), divmod(min(odd), 64)
    assert (change.status, change.changed, change.gone) == ("broken", len(odd), None)
    assert change.appeared is not None
    assert (change.appeared.nan, change.appeared.inf, change.appeared.first) == (*counts, first)
    assert (change.greatest_at, change.relative_change) == (None, 0)
    (told,) = found.findings
    assert told.rule == "WG601"
    assert told.message == f"{words}, where the base has finite values"
    assert told.location.element == first
    recorded = told.evidence.get("nan_appeared", 0), told.evidence.get("inf_appeared", 0)
    assert recorded == counts

    found = compared(tmp_path, {"w": harmed}, {"w": sound}, limits=limits)
    change = only(found)
    assert (change.status, change.appeared) == ("fine-tuned", None)
    assert change.gone is not None
    assert change.gone.first == first
    assert found.findings[0].message == f"finite values where the base has {words}"
    assert found.findings[0].location.element == first


def test_nan_that_becomes_infinite_is_both(tmp_path: Path) -> None:
    change = only(compared(tmp_path, {"w": holding({70: np.nan})}, {"w": holding({70: np.inf})}))
    assert change.appeared is not None
    assert change.gone is not None
    assert (change.appeared.inf, change.gone.nan) == (1, 1)


def test_a_tensor_without_finite_values_has_no_relative_change(tmp_path: Path) -> None:
    nothing = holding(dict.fromkeys(range(4096), np.nan))
    change = only(compared(tmp_path, {"w": random_tensor(*F32)}, {"w": nothing}))
    assert (change.status, change.relative_change, change.greatest_at) == ("broken", None, None)
    assert only(compared(tmp_path, {"w": nothing}, {"w": nothing})).status == "unchanged"


def test_zeros_of_another_sign_change_bits_and_no_value(tmp_path: Path) -> None:
    change = only(compared(tmp_path, {"w": holding({7: 0.0})}, {"w": holding({7: -0.0})}))
    assert (change.changed, change.greatest_change, change.greatest_at) == (1, None, None)


def test_a_cast_that_overflows_is_broken(tmp_path: Path) -> None:
    wide = values(holding({70: 1e30}))
    with np.errstate(over="ignore"):
        narrow = ("F16", (64, 64), wide.astype("<f2").tobytes())
    assert only(compared(tmp_path, {"w": (*F32, wide.tobytes())}, {"w": narrow})).status == "broken"


def test_huge_values_exceed_every_limit(tmp_path: Path) -> None:
    base = ("F64", (64,), np.full(64, 1e300).tobytes())
    new = ("F64", (64,), np.full(64, -1e300).tobytes())
    found = compared(tmp_path, {"w": base}, {"w": new}, limits=DriftLimits(max_change=1e9))
    assert only(found).status == "replaced"
    assert [f.rule for f in found.findings] == ["WG602"]


def attested(tmp_path: Path, name: str, tensors: Tensors, digest: str = "blake3") -> Path:
    path = tmp_path / f"{name}.json"
    model = write_safetensors(tmp_path / f"{name}.safetensors", tensors)
    with fingerprint(model, digest=digest) as manifest:  # type: ignore[arg-type]
        manifest.write(path)
    model.unlink()
    return path


@pytest.mark.parametrize("digest", ["blake3", "sha256"])
def test_manifests_are_compared_without_weights(digest: str, tmp_path: Path) -> None:
    a, b, c = (random_tensor(*F32, seed) for seed in (1, 2, 3))
    base = attested(tmp_path, "base", {"same": a, "other": b, "gone": c})
    new = attested(tmp_path, "new", {"same": a, "other": c, "more": b}, digest)
    found = diff(base, new)
    assert found.measured == "manifests"
    assert {t.tensor: t.status for t in found.tensors} == {
        "same": "unchanged", "other": "changed", "gone": "removed", "more": "added",
    }  # fmt: skip
    other = next(t for t in found.tensors if t.tensor == "other")
    assert other.base is not None
    assert other.base.max == values(b).max()
    model = write_safetensors(tmp_path / "m.safetensors", {"same": a, "other": b, "gone": c})
    assert diff(base, model).count("unchanged") == 3
    with pytest.raises(WeightguardError, match="a manifest holds no weights"):
        diff(base, new, limits=DriftLimits(max_change=0.1))
    for useless in (float("nan"), -0.1):
        with pytest.raises(WeightguardError, match="must be 0 or more"):
            DriftLimits(max_change=useless)
    frozen = diff(base, new, limits=DriftLimits(changed=(), added=("*",), removed=("*",)))
    assert [f.rule for f in frozen.findings] == ["WG603"]


def test_manifests_tell_that_nan_appeared(tmp_path: Path) -> None:
    base = attested(tmp_path, "base", {"w": random_tensor(*F32)})
    new = attested(tmp_path, "new", {"w": holding({70: np.nan, 71: np.inf})})
    change = only(diff(base, new))
    assert change.status == "broken"
    assert change.new is not None
    assert (change.new.nan, change.new.inf) == (1, 1)
    found = diff(base, new, limits=DriftLimits())
    assert [(f.rule, f.evidence["nan"]) for f in found.findings] == [("WG601", [0, 1])]
    assert only(diff(new, base)).status == "changed"


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    model = write_safetensors(tmp_path / "m.safetensors", {"w": random_tensor(*F32)})
    with pytest.raises(CheckpointError):
        diff(tmp_path / "none", model)
    (tmp_path / "newer.json").write_text('{"schema": "weightguard-manifest-v7"}')
    with pytest.raises(ManifestError, match="too old for: update it"):
        diff(tmp_path / "newer.json", model)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with a layer fine-tuned, one replaced, two cast, and its super weight zeroed."""
    generator = np.random.default_rng(0)

    def changed(name: str, found: dict[str, bytes]) -> tuple[str, bytes]:
        data = found[name]
        floats = values(("BF16", (), data))
        if name.startswith("model.layers.3.") and "proj" in name:
            noise = generator.standard_normal(len(floats), dtype=np.float32)
            return "BF16", bf16(floats + noise * np.float32(0.02 * floats.std())).tobytes()
        if name == "model.layers.5.mlp.up_proj.weight":
            return "BF16", found["model.layers.6.mlp.up_proj.weight"]
        if name == "model.layers.7.mlp.gate_proj.weight":
            return "F32", floats.tobytes()
        if name == "model.layers.8.mlp.gate_proj.weight":
            return "F16", floats.astype("<f2").tobytes()
        if name == DOWN:
            zeroed = floats.copy()
            zeroed.reshape(576, 1536)[507, 1229] = 0
            return "BF16", bf16(zeroed).tobytes()
        return "BF16", data

    with open_checkpoint(smollm2_bf16()) as opened:
        found = {tensor.name: bytes(tensor.read()) for tensor in opened.tensors}
        tensors = {}
        for tensor in opened.tensors:
            dtype, data = changed(tensor.name, found)
            tensors[tensor.name] = (dtype, tensor.shape, data)
    path = tmp_path_factory.mktemp("tuned") / "model.safetensors"
    path.write_bytes(safetensors_bytes(tensors))
    return path


def with_status(found: Diff, *statuses: str) -> Iterable[str]:
    return {change.tensor for change in found.tensors if change.status in statuses}


@pytest.mark.real
def test_a_real_model_fine_tuned_replaced_and_cast(tuned: Path) -> None:
    found = diff(smollm2_bf16(), tuned, limits=DriftLimits(max_change=0.1))
    assert with_status(found, "replaced") == {"model.layers.5.mlp.up_proj.weight"}
    assert with_status(found, "cast") == {f"model.layers.{n}.mlp.gate_proj.weight" for n in (7, 8)}
    assert len([*with_status(found, "fine-tuned")]) == 8
    assert found.count("unchanged") == 261
    noisy = [c for c in found.tensors if c.tensor.startswith("model.layers.3.") and c.changed]
    assert all(0.019 < (c.relative_change or 0) < 0.021 for c in noisy)
    lost = [move for move in found.moved if move.tensor == DOWN and move.kind == "super-weight"]
    assert [(m.index, m.base, m.new, m.stands_out) for m in lost] == [
        ((507, 1229), 5.875, 0.0, "base")
    ]
    assert [f.rule for f in found.findings] == ["WG602"]


@pytest.mark.real
def test_a_real_model_quantised_is_a_cast(tmp_path: Path) -> None:
    with open_checkpoint(smollm2_gguf()) as opened:
        some = [t for t in opened.tensors if t.dtype.name == "Q4_1"][:2]
        tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {
            t.name: (
                "F32",
                t.shape,
                np.concatenate([v for _, v in iterate_values(t)]).astype("<f4").tobytes(),
            )
            for t in some
        }
    found = diff(write_safetensors(tmp_path / "m.safetensors", tensors), smollm2_gguf())
    assert {c.tensor: c.status for c in found.tensors if c.status != "added"} == dict.fromkeys(
        tensors, "cast"
    )
