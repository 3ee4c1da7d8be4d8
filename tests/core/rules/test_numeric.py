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


def test_attention_masks_are_sound(tmp_path: Path) -> None:
    mask = np.triu(np.full((64, 64), -np.inf), 1)
    report = audited(tmp_path, {"mask": tensor(mask, "F32")})
    assert [found.severity for found in report.findings] == ["info"]
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
