"""Reports for tests of what presents them: of sound, damaged, hostile and large checkpoints."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from tests.checkpoints import random_tensor, write_safetensors
from tests.language_models import SUPER_WEIGHT, llama, stored
from weightguard import Report, audit, fingerprint
from weightguard.finding import Coverage, finding, ordered
from weightguard.ranges import TensorRange
from weightguard_cli.presentation import Presentation
from weightguard_cli.verdict import Scope

HOSTILE = (
    "\x1b[31m\r\n::error::x|y<script>alert(1)</script><img src=x onerror=alert(2)>\u202e##[error]"
    "`a`@user #1 [x](http://e.test/) {0} &amp; ]]> \x00"
)
AUDIT = Presentation("audit", Scope(False, ("equality with trusted weights",)))
VERIFY = Presentation("verify", Scope(True), folder=PurePosixPath("models/a b"))
MANY_TENSORS, MANY_FINDINGS = 1_000, 10_000


def clean(folder: Path) -> Report:
    return audit(write_safetensors(folder / "model.safetensors", stored(llama(SUPER_WEIGHT))))


def damaged(folder: Path) -> Report:
    """Return the report of a language model with NaN, dead rows and changed blocks."""
    arrays = llama(SUPER_WEIGHT)
    big = random_tensor("F32", (2000, 1500), 3)
    path = write_safetensors(folder / "model.safetensors", {**stored(arrays), "z.weight": big})
    with fingerprint(path) as manifest:
        arrays["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
        arrays["model.layers.0.self_attn.k_proj.weight"][4] = 0
        data = bytearray(big[2])
        data[5_000_000] ^= 1
        data[9_000_000] ^= 64
        changed = (*big[:2], bytes(data))
        write_safetensors(path, {**stored(arrays), "z.weight": changed})
        return audit(path, manifest=manifest)


def hostile(folder: Path) -> Report:
    """Return the report of tensors whose names try to be markup, commands and escapes."""
    nan = np.full((64, 64), np.nan, "<f4").tobytes()
    tensors = {
        HOSTILE: ("F32", (64, 64), nan),
        "long." + "y" * 3000: random_tensor("F16", (64, 64)),
    }
    return audit(write_safetensors(folder / "model.safetensors", tensors))


def unreadable(folder: Path) -> Report:
    path = write_safetensors(folder / "model.safetensors", {"w": random_tensor("F32", (64, 64))})
    path.write_bytes(path.read_bytes()[:-999])
    return audit(path)


def large() -> Report:
    """Return a report of a thousand tensors and ten thousand findings of hostile words."""
    ranges = tuple(
        TensorRange(f"layers.{n}.{HOSTILE}", "BF16", (4096, 4096), 1 << 25, f"shard-{n % 8}",
                    n << 25, -1.0, 1.0, 1.0, 0.02, 0, 0, 0)
        for n in range(MANY_TENSORS)
    )  # fmt: skip
    elements = [[n, n] for n in range(64)]
    codes = ("WG201", "WG203", "WG205", "WG207", "WG401")
    findings = [
        finding(codes[n % 5], HOSTILE * 20, tensor=ranges[n % MANY_TENSORS].name, file="shard-0",
                offset=n, element=(n % 4096, 7), evidence={"count": 64, "elements": elements})
        for n in range(MANY_FINDINGS)
    ]  # fmt: skip
    coverage = Coverage(MANY_TENSORS, MANY_TENSORS, 1 << 35, 1 << 35)
    return Report("huge", "safetensors", True, ordered(findings), coverage, ranges=ranges)


REPORTS = {"clean": clean, "damaged": damaged, "hostile": hostile, "unreadable": unreadable}
