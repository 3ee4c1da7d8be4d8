"""Declared casts: what torch does, and undone only where nothing was lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightguard.guard.casts import CASTS, undone

TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def every_half() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(np.uint8)


def some_floats() -> np.ndarray:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    edges = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x00008000, 0x3F808000, 0x3F818000,
             0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001]  # fmt: skip
    return np.concatenate([bits, np.array(edges, np.uint32)]).view(np.uint8)


@pytest.mark.parametrize(("attested", "live"), sorted(CASTS))
def test_casts_are_those_of_torch(attested: str, live: str) -> None:
    data = some_floats() if attested == "F32" else every_half()
    theirs = torch.from_numpy(data.copy()).view(TORCH[attested]).to(TORCH[live])
    ours = torch.from_numpy(CASTS[attested, live](data).copy()).view(TORCH[live])
    number = ~theirs.isnan()
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[number].view(torch.uint8), theirs[number].view(torch.uint8))


@pytest.mark.parametrize("attested", ["BF16", "F16"])
def test_every_widened_value_is_undone(attested: str) -> None:
    data = every_half()
    form = torch.from_numpy(data.copy()).view(TORCH[attested])
    numbers = data.reshape(-1, 2)[(~form.isnan()).numpy()].reshape(-1)
    back = undone(CASTS[attested, "F32"](numbers), attested, "F32")
    assert back is not None
    assert np.array_equal(back, numbers)


def test_a_value_between_is_not() -> None:
    live = np.array([1.0, np.float32(1) + np.float32(2**-20)], np.float32).view(np.uint8)
    assert undone(live, "BF16", "F32") is None
    assert undone(live[:4], "BF16", "F32") is not None
    assert undone(live, "F32", "BF16") is None, "rounding cannot be undone"
    assert undone(live, "F32", "F32") is live
