"""The kernel's own program, under sanitizers here and on an emulated ARM processor."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

# the build takes as long as all else here: one process makes it
pytestmark = pytest.mark.xdist_group("sanitized")

ROOT = Path(__file__).parents[3]
NATIVE = ROOT / "integrations/weightguard_integrations/ternary/native"
PROGRAM = ROOT / "tests/native/ternary_selftest.cpp"
COMMON = ("-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", "-Werror")
QUIET = (
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
    "-Wno-unknown-warning-option",
)  # in GCC's own intrinsics
X86 = {
    "isa_avx2": ("-mavx2",),
    "isa_avxvnni": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"),
    "isa_avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
}
ARM = {"isa_neon": ("-march=armv8.2-a+dotprod",)}
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def build(folder: Path, compiler: str, isas: dict[str, tuple[str, ...]], *flags: str) -> Path:
    """Compile each file with its own flags, as the module is."""
    objects = []
    for source in (*sorted(NATIVE.glob("*.cpp")), PROGRAM):
        if source.stem == "bindings" or (source.stem.startswith("isa_") and not_for(source, isas)):
            continue
        objects.append(folder / f"{source.stem}.o")
        subprocess.run(
            [compiler, *COMMON, *QUIET, *flags, *isas.get(source.stem, ()), f"-I{NATIVE}",
             "-c", source, "-o", objects[-1]],
            check=True,
        )  # fmt: skip
    program = folder / "selftest"
    subprocess.run([compiler, *flags, *objects, "-pthread", "-o", program], check=True)
    return program


def not_for(source: Path, isas: dict[str, tuple[str, ...]]) -> bool:
    return source.stem != "isa_scalar" and source.stem not in isas


def result(*command: str | Path) -> tuple[list[str], str]:
    """Return the kernels that ran, and the hash of what they gave."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    kernels, digest = done.stdout.splitlines()
    return kernels.split(), digest


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    arm = platform.machine() in ("aarch64", "arm64")
    flags = (*SANITIZE, *(() if arm else ("-DWG_TEST_256",)))
    folder = tmp_path_factory.mktemp("sanitized")
    return result(build(folder, os.environ.get("CXX", "c++"), ARM if arm else X86, *flags))


def test_every_kernel_is_clean_under_the_sanitizers(sanitized: tuple[list[str], str]) -> None:
    kernels, _ = sanitized
    assert kernels[0] == "scalar"
    assert len(kernels) > 1


@pytest.mark.skipif(
    "CI" not in os.environ and not (shutil.which(CROSS) and shutil.which(EMULATOR)),
    reason=f"{CROSS} and {EMULATOR} emulate what this machine is not: make emulator",
)
def test_neon_gives_the_same_bits(tmp_path: Path, sanitized: tuple[list[str], str]) -> None:
    program = build(tmp_path, CROSS, ARM, "-static")
    kernels, digest = result(EMULATOR, program, "no-fork")
    assert kernels == ["scalar", "neon"]
    assert digest == sanitized[1]
