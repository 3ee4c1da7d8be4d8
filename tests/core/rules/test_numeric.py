"""Numeric rules: damage is found, genuine weights are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import Tensors, write_safetensors
from weightguard import Report, audit

OPT_175B_VALUES = [
    5.2691e-05, 4500, 1.6427e-04, 5508, 52256, 6588, 30224, 5.2631e-05, 7564, 6.4969e-06,
    1.5259e-05, 1.5259e-05, 0, 5.0783e-04, 0, -0.0, 0, -4.8828e-03,
]  # fmt: skip
"""The contiguous wrong fp16 values of a released OPT-175B shard (metaseq #122)."""


def weights(rows: int = 256, columns: int = 512, scale: float = 0.02) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((rows, columns)) * scale


def tensor(values: np.ndarray, dtype: str) -> tuple[str, tuple[int, ...], bytes]:
    if dtype == "BF16":
        data = (values.astype("<f4").view(np.uint32) >> 16).astype("<u2").tobytes()
    else:
        data = values.astype(f"<f{int(dtype[1:]) // 8}").tobytes()
    return dtype, values.shape, data


def audited(tmp_path: Path, tensors: Tensors) -> Report:
    return audit(write_safetensors(tmp_path / "model.safetensors", tensors))


def rules(report: Report) -> list[str]:
    return [found.rule for found in report.findings]


def test_the_damage_that_shipped_in_opt_175b(tmp_path: Path) -> None:
    fc1 = weights(512, 1024).astype(np.float16)
    fc1.reshape(-1)[200_000:200_018] = OPT_175B_VALUES
    (found,) = audited(tmp_path, {"decoder.layers.3.fc1.weight": tensor(fc1, "F16")}).findings
    assert found.rule == "WG207"
    assert found.evidence["count"] == 6
    assert found.location.element == divmod(200_001, 1024)
    assert 52256.0 in found.evidence["values"]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("shape", [(256, 512), (576,)])
def test_top_exponent_flips_are_found(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = weights(*shape) if len(shape) == 2 else 1 + weights(1, shape[0], 0.1).ravel()
    if dtype == "F16":
        values = values * 0.2 + 0.01
    name, dims, data = tensor(values, dtype)
    size = len(data) // int(np.prod(shape))
    damaged = bytearray(data)
    element = 123 if dtype != "F16" or len(shape) == 2 else 5
    damaged[size * element + size - 1] ^= 0x40
    report = audited(tmp_path, {"w": (name, dims, bytes(damaged))})
    (found,) = report.findings
    assert found.rule in ("WG207", "WG202", "WG201")
    assert found.location.element is not None
    assert np.ravel_multi_index(found.location.element, shape) == element


@pytest.mark.parametrize("outlier", [20, 60, 300])
def test_genuine_outliers_are_not_findings(tmp_path: Path, outlier: float) -> None:
    values = weights()
    values[7, 100] = outlier * 0.02
    values[7, 200] = outlier * 0.02 / 30
    assert audited(tmp_path, {"w": tensor(values, "BF16")}).findings == ()


def test_nan_and_infinities_name_their_elements(tmp_path: Path) -> None:
    values = weights()
    values[3, 4] = np.nan
    values[5, 6] = -np.inf
    first, second = audited(tmp_path, {"w": tensor(values, "F32")}).findings
    assert (first.rule, first.location.element) == ("WG201", (3, 4))
    assert (second.rule, second.location.element) == ("WG202", (5, 6))
    data = (tmp_path / "model.safetensors").read_bytes()
    for found, value in ((first, np.float32(np.nan)), (second, np.float32(-np.inf))):
        assert found.location.offset is not None
        assert data[found.location.offset :][:4] == value.tobytes()


def test_attention_masks_are_sound(tmp_path: Path) -> None:
    mask = np.triu(np.full((64, 64), -np.inf), 1)
    report = audited(tmp_path, {"mask": tensor(mask, "F32")})
    assert [found.severity for found in report.findings] == ["info"]
    assert "Nothing to do" in report.findings[0].remedy
    constant = np.array(-np.inf)
    report = audited(tmp_path, {"constant": tensor(constant, "F32")})
    assert [found.severity for found in report.findings] == ["info"]
    lost = np.full((64, 64), np.inf)
    report = audited(tmp_path, {"lost": tensor(lost, "F32")})
    assert [found.severity for found in report.findings] == ["critical"]
    wide = np.triu(np.full((64, 64), np.finfo(np.float32).min), 1)
    report = audited(tmp_path, {"mask": tensor(wide, "F32")})
    assert [found.severity for found in report.findings] == ["info"]


def test_zero_constant_and_dead(tmp_path: Path) -> None:
    dead = weights()
    dead[10:12] = 0
    report = audited(
        tmp_path,
        {
            "zero": tensor(np.zeros((64, 64)), "BF16"),
            "constant": tensor(np.full((64, 64), 0.5), "BF16"),
            "dead": tensor(dead, "BF16"),
            "embed_tokens": tensor(dead, "BF16"),
            "bias": tensor(np.zeros(64), "BF16"),
            "norm": tensor(np.ones(64), "BF16"),
        },
    )
    found = {(f.location.tensor, f.rule, f.severity) for f in report.findings}
    assert found == {
        ("zero", "WG203", "error"),
        ("constant", "WG204", "warning"),
        ("dead", "WG205", "warning"),
        ("embed_tokens", "WG205", "info"),
    }


def test_subnormal_flood(tmp_path: Path) -> None:
    report = audited(tmp_path, {"w": tensor(weights() * 1e-38, "F32")})
    assert "WG206" in rules(report)


def test_integers_have_no_numeric_findings(tmp_path: Path) -> None:
    ids = np.zeros((64, 64), "<i8")
    ids[0, 0] = 2**62
    assert audited(tmp_path, {"ids": ("I64", (64, 64), ids.tobytes())}).findings == ()


def test_absurd_values_in_every_row_are_found(tmp_path: Path) -> None:
    values = weights(64, 4096)
    values[np.arange(64), np.random.default_rng(1).integers(0, 4096, 64)] = 1e30
    (found,) = audited(tmp_path, {"w": tensor(values, "F32")}).findings
    assert (found.rule, found.evidence["count"]) == ("WG207", 64)


def bits_flipped(values: np.ndarray, dtype: str, count: int, seed: int = 1) -> np.ndarray:
    """Return the stored bits with the top exponent bit of ``count`` values flipped."""
    width = {"BF16": 2, "F16": 2, "F32": 4}[dtype]
    bits = np.frombuffer(tensor(values, dtype)[2], f"<u{width}").copy()
    places = np.random.default_rng(seed).permutation(len(bits))[:count]
    bits[places] ^= 1 << (8 * width - 2)
    return bits.reshape(values.shape)


@pytest.mark.parametrize(
    ("dtype", "count"),
    [("BF16", 200), ("BF16", 50_000), ("F32", 50_000), ("F16", 40), ("F16", 500), ("F16", 1000)],
)
def test_many_flips_are_found_though_they_fill_the_octaves(
    tmp_path: Path, dtype: str, count: int
) -> None:
    values = weights(1024, 1024)
    for seed in range(3):
        bits = bits_flipped(values, dtype, count, seed)
        (found,) = audited(tmp_path, {"w": (dtype, bits.shape, bits.tobytes())}).findings
        assert found.rule == "WG207"
        assert found.evidence["count"] > 0.9 * count
        magnitudes = np.sort(np.abs(_decoded(bits, dtype)).ravel())[::-1]
        assert magnitudes[found.evidence["count"]] < found.evidence["others_below"]


def _decoded(bits: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (bits.astype("<u4") << 16).view("<f4")
    return bits.view(f"<f{bits.itemsize}").astype(np.float64)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_random_sector_is_found(tmp_path: Path, dtype: str) -> None:
    data = bytearray(tensor(weights(1024, 1024), dtype)[2])
    sector = np.random.default_rng(8).integers(0, 256, 512, np.uint8).tobytes()
    data[102_400:102_912] = sector
    report = audited(tmp_path, {"w": (dtype, (1024, 1024), bytes(data))})
    found = next(f for f in report.findings if f.rule == "WG207")
    assert found.location.element is not None
    element = np.ravel_multi_index(found.location.element, (1024, 1024))
    size = 2 if dtype == "BF16" else 4
    assert 102_400 <= element * size < 102_912


def test_a_flip_in_a_tiny_tensor_is_found(tmp_path: Path) -> None:
    values = weights(4, 8)
    values[1, 2] = 2.4e36
    (found,) = audited(tmp_path, {"w": tensor(values, "BF16")}).findings
    assert (found.rule, found.location.element) == ("WG207", (1, 2))


F32_MIN = float(np.finfo(np.float32).min)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("masked_bias", np.array(F32_MIN)),
        ("bias", np.array([F32_MIN])),
        ("attn.bias", np.triu(np.full((64, 64), F32_MIN), 1)),
        ("attn.bias", np.triu(np.full((64, 64), -1e30), 1)),
        ("relative", np.where(np.tri(64) > 0, weights(64, 64), F32_MIN)),
        ("relative", np.where(np.tri(64) > 0, weights(64, 64), -1e16)),
        ("attn_mask", np.where(np.tri(64) > 0, weights(64, 64), -3e20)),
        ("two", np.where(np.tri(8) > 0, 0.5, -3e20)),
    ],
)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_what_masks_are_filled_with_is_no_absurd_value(
    tmp_path: Path, name: str, values: np.ndarray, dtype: str
) -> None:
    assert "WG207" not in rules(audited(tmp_path, {name: tensor(values, dtype)}))


@pytest.mark.parametrize("shape", [(1024, 1024), (4096, 256)])
def test_large_rows_and_columns_are_no_second_mode(tmp_path: Path, shape: tuple[int, int]) -> None:
    used = weights(*shape, scale=1e-6)
    used[: shape[0] // 128] *= 1e5
    channel = weights(*shape, scale=1e-5)
    channel[:, 3] *= 3e4
    for dtype in ("F16", "F32"):
        report = audited(tmp_path, {"used": tensor(used, dtype), "channel": tensor(channel, dtype)})
        assert "WG207" not in rules(report)


@pytest.mark.parametrize("degrees", [1.0, 1.5, 2.0, 3.0])
def test_heavy_tails_have_no_second_mode(tmp_path: Path, degrees: float) -> None:
    for seed in range(3):
        values = np.random.default_rng(seed).standard_t(degrees, (512, 512)) * 0.02
        assert rules(audited(tmp_path, {"w": tensor(values, "F32")})) == []


@pytest.mark.parametrize(
    ("shape", "dead"),
    [((4000, 8), range(2000, 2100)), ((200, 32), [11]), ((64, 3, 3, 3), [11]), ((8, 50, 16), [77])],
)
def test_dead_rows_of_narrow_matrices_are_found(
    tmp_path: Path, shape: tuple[int, ...], dead: list[int]
) -> None:
    flat = weights(200, 640).ravel()[: int(np.prod(shape))].copy()
    row = shape[-1] if len(shape) < 4 else int(np.prod(shape[1:]))
    flat.reshape(-1, row)[list(dead)] = 0
    (found,) = audited(tmp_path, {"lora_A.weight": tensor(flat.reshape(shape), "BF16")}).findings
    assert (found.rule, found.severity) == ("WG205", "warning")
    assert found.evidence == {"count": len(dead), "rows": list(dead)[:16]}
    assert found.location.element == np.unravel_index(dead[0] * row, shape)


def test_zeros_that_scatter_make_no_dead_rows(tmp_path: Path) -> None:
    values = weights(4000, 8)
    values[np.random.default_rng(3).random(values.shape) < 0.2] = 0
    pairs = weights(4000, 2)
    pairs[np.random.default_rng(3).random(pairs.shape) < 0.2] = 0
    tensors = {"w": tensor(values, "F32"), "pairs": tensor(pairs, "F32")}
    report = audited(tmp_path, tensors)
    assert {(f.location.tensor, f.severity) for f in report.findings} == {("pairs", "info")}


def test_what_names_make_usual_is_no_alarm(tmp_path: Path) -> None:
    moments = weights(1000, 64)
    moments[300:] = 0
    zero = np.zeros((512, 8))
    report = audited(
        tmp_path,
        {
            "opt.state.0.exp_avg": tensor(moments, "F32"),
            "state.0.exp_avg_sq": tensor(moments**2, "F32"),
            "state.1.exp_avg": tensor(zero, "F32"),
            "base.q_proj.lora_B.default.weight": tensor(zero, "F32"),
            "q_proj.weight": tensor(zero, "F32"),
        },
    )
    assert {(f.location.tensor, f.rule, f.severity) for f in report.findings} == {
        ("opt.state.0.exp_avg", "WG205", "info"),
        ("state.0.exp_avg_sq", "WG205", "info"),
        ("state.1.exp_avg", "WG203", "info"),
        ("base.q_proj.lora_B.default.weight", "WG203", "warning"),
        ("q_proj.weight", "WG203", "error"),
    }


def test_a_checkpoint_without_tensors_is_not_sound(tmp_path: Path) -> None:
    report = audited(tmp_path, {})
    assert [(f.rule, f.severity) for f in report.findings] == [("WG210", "warning")]
