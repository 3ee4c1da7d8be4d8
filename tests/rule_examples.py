"""A really damaged input for every rule, and the page's example: what the tool prints about it.

    python -m tests.rule_examples       # writes the examples into docs/rules again

A new rule needs an entry in ``EXAMPLES`` and a page; ``TEMPLATE`` is what a page looks like.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from numpy.typing import NDArray

from tests import torch_archives as torch_zip
from tests.checkpoints import (
    Tensors,
    random_tensor,
    safetensors_bytes,
    write_safetensors,
    write_sharded,
)
from tests.gguf_files import Info, gguf_bytes
from tests.language_models import SUPER_WEIGHT, llama, stored
from tests.live_rule_examples import LIVE, logged
from tests.real_models import smollm2_bf16
from weightguard import open_checkpoint, trust
from weightguard.catalogue import RULES, Rule
from weightguard.finding import Coverage, Report
from weightguard.guard import reactions
from weightguard_cli import conclude
from weightguard_cli.main import main
from weightguard_cli.presentation import Presentation
from weightguard_cli.verdict import Scope
from weightguard_integrations.ternary import matrix

PAGES = Path(__file__).parent.parent / "docs" / "rules"
TEMPLATE = """
## What it means

## Why it matters

## How to fix it

## Example

```text
```
"""
SECTIONS = ("What it means", "Why it matters", "How to fix it", "Example")
REAL = frozenset({"WG301", "WG302", "WG303"})
"""Examples on a real model, which the development set-up fetches."""

_EXAMPLE = re.compile(r"```text\n.*?```", re.DOTALL)

Command = Sequence[str]
ONE = {"w": random_tensor("F32", (64, 64), 1)}
TWO = {"v": random_tensor("F32", (32, 64), 2)}


@dataclass(frozen=True, slots=True)
class Told:
    """What an example prints, and the report behind it."""

    printed: str
    report: Report
    presentation: Presentation


def example(code: str) -> str:
    """Return what the example of rule ``code`` prints, made in an empty folder."""
    return told(code).printed


@functools.cache
def told(code: str) -> Told:
    """Run the example of rule ``code`` in an empty folder."""
    # an example may set variables
    environment = mock.patch.dict(os.environ)
    with environment, tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        if code in LIVE:
            return Told(logged(code), *_incident(code))
        command = EXAMPLES[code]()
        with mock.patch.object(conclude, "render", wraps=conclude.render) as render:
            printed = run(command)
    _, report, presentation = render.call_args.args
    rules = {found.rule for found in report.findings}
    assert code in rules, f"the example of {code} does not show it:\n{printed}"
    return Told(f"$ weightguard {' '.join(command)}\n{printed}", report, presentation)


def _incident(code: str) -> tuple[Report, Presentation]:
    """Return a report of the incident that a live example makes."""
    incident = mock.patch.object(reactions, "_line", wraps=reactions._line)
    product = mock.patch.object(matrix, "_log", wraps=matrix._log)
    with incident as of_guard, product as of_kernel:
        LIVE[code]()
    told_of = [call.args[0].finding for call in of_guard.call_args_list]
    told_of += [call.args[1] for call in of_kernel.call_args_list]
    found = next(found for found in told_of if found.rule == code)
    report = Report("live", "unknown", True, (found,), Coverage(1, 1, 1, 1))
    return report, Presentation("guard", Scope(False))


def run(command: Command) -> str:
    """Return what a command writes to standard output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main(list(command))
    return output.getvalue()


def heading(rule: Rule) -> str:
    """Return what a page begins with: the words of the catalogue."""
    return f"# {rule.code} {rule.name}\n\n**{rule.severity.label}**: {rule.summary}\n"


def with_example(text: str, shown: str) -> str:
    """Return a page with its example replaced."""
    return _EXAMPLE.sub(lambda _: f"```text\n{shown}```", text, count=1)


def _audit(data: bytes, name: str = "model.safetensors") -> Command:
    Path(name).write_bytes(data)
    return ("audit", name)


def _header(text: str, data: bytes = b"") -> Command:
    raw = text.encode()
    raw += b" " * (-len(raw) % 8)
    return _audit(len(raw).to_bytes(8, "little") + raw + data)


def _entry(start: int, end: int, shape: str = "[4]", dtype: str = "F32") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


def _values(values: NDArray[np.float64], dtype: str = "F32") -> Command:
    data = values.astype("<f4" if dtype == "F32" else "<f2").tobytes()
    return _audit(safetensors_bytes({"layers.0.up_proj.weight": (dtype, values.shape, data)}))


def _weights() -> NDArray[np.float64]:
    return np.random.default_rng(5).standard_normal((256, 256)) * 0.02


def _with(place: tuple[int, ...], value: float) -> Command:
    values = _weights()
    values[place] = value
    return _values(values)


def _index(change: Callable[[Path], None]) -> Command:
    folder = write_sharded(Path("model"), [ONE, TWO])
    change(folder)
    return ("audit", "model")


def _map_to(shard: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        document = json.loads(index.read_text())
        document["weight_map"]["v"] = shard
        index.write_text(json.dumps(document))

    return change


def _fifo() -> Command:
    os.mkfifo("model.safetensors")
    return ("audit", "model.safetensors")


def _config(text: str) -> Command:
    Path("model").mkdir()
    write_safetensors(Path("model/model.safetensors"), ONE)
    Path("model/config.json").write_text(text)
    return ("audit", "model")


def _interrupted() -> Command:
    """Repair a flipped bit in place, on a disk that stops taking bytes half-way."""
    path = write_safetensors(Path("model.safetensors"), ONE)
    run(("manifest", path.name, "-o", "model.weightguard.json"))
    write_safetensors(path, _flipped(ONE))
    plain, inode = os.pwrite, path.stat().st_ino

    def failing(descriptor: int, data: memoryview, offset: int) -> int:
        if os.fstat(descriptor).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(descriptor, data, offset)

    with mock.patch.object(os, "pwrite", failing), contextlib.redirect_stderr(io.StringIO()):
        run(("repair", path.name, "model.weightguard.json", "--in-place"))
    return ("verify", path.name, "model.weightguard.json")


def _config_mismatch() -> Command:
    command = _config(json.dumps({"model_type": "llama", "vocab_size": 101, "hidden_size": 64}))
    tensors = {"model.embed_tokens.weight": random_tensor("F32", (100, 64))}
    write_safetensors(Path("model/model.safetensors"), tensors)
    return command


def _legacy() -> Command:
    magic = 0x1950A86A20F9469CFC6C
    return _audit(torch_zip.pickled(torch_zip.number(magic)) + bytes(64), "model.pt")


def _unsafe_pickle() -> Command:
    call = torch_zip.call("posix.system", torch_zip.text("id"))
    return _audit(torch_zip.archive(torch_zip.pickled(torch_zip.table(w=call))), "model.pt")


def _record_checksum() -> Command:
    records = torch_zip.entries()
    records[2].crc = 0x12345678
    return _audit(torch_zip.Zip(records).build(), "model.pt")


def _unsafe_zip() -> Command:
    again = torch_zip.Entry("a/data/0", struct.pack("<4f", 9, 9, 9, 9))
    return _audit(torch_zip.archive(None, again), "model.pt")


def _blob_digest() -> Command:
    data = safetensors_bytes(ONE)
    repository = Path("hub/models--org--model")
    snapshot = repository / "snapshots" / ("0" * 40)
    blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
    for folder in (snapshot, blob.parent):
        folder.mkdir(parents=True)
    blob.write_bytes(data[:-4] + bytes(4))
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{blob.name}")
    return ("audit", str(snapshot), "--file-digests")


def _super_weight(bits: int) -> Command:
    name = "model.layers.11.mlp.down_proj.weight"
    shutil.copyfile(smollm2_bf16(), "model.safetensors")
    with open_checkpoint("model.safetensors") as checkpoint:
        tensor = next(t for t in checkpoint.tensors if t.name == name)
    assert tensor.offset is not None
    with Path("model.safetensors").open("r+b") as file:
        file.seek(tensor.offset + 2 * (507 * 1536 + 1229))
        file.write(bits.to_bytes(2, "little"))
    return ("audit", "model.safetensors", "--select", "WG301,WG302,WG303")


def _scale_swallowed() -> Command:
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    arrays = llama(SUPER_WEIGHT, heavy=False)
    writer = GGUFWriter("model.gguf", "llama")
    for name in ("down", "up", "gate"):
        values = arrays[f"model.layers.2.mlp.{name}_proj.weight"]
        kind = GGMLQuantizationType.Q4_0
        writer.add_tensor(f"blk.2.ffn_{name}.weight", quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ("audit", "model.gguf")


def _changed_super_weight() -> Command:
    arrays = llama(SUPER_WEIGHT)
    name = "model.layers.2.mlp.down_proj.weight"

    def damage(_: Tensors) -> Tensors:
        arrays[name][SUPER_WEIGHT.row, SUPER_WEIGHT.column] = 5
        return stored(arrays)

    return _verified(damage, stored(arrays))


def _changed_channel() -> Command:
    arrays = llama()
    name = "model.layers.0.self_attn.q_proj.weight"
    arrays[name][5] *= 20
    sound = stored(arrays)

    def damage(_: Tensors) -> Tensors:
        arrays[name][5] /= 2
        return stored(arrays)

    return _verified(damage, sound)


def _verified(
    damage: Callable[[Tensors], Tensors], tensors: Tensors | None = None, *options: str
) -> Command:
    """Attest a checkpoint, damage it, and return the command that compares the two."""
    sound = tensors or {**ONE, **TWO}
    path = write_safetensors(Path("model.safetensors"), sound)
    run(("manifest", path.name, "-o", "model.weightguard.json", *options))
    write_safetensors(path, damage(sound))
    return ("verify", path.name, "model.weightguard.json")


def _flipped(tensors: Tensors) -> Tensors:
    dtype, shape, data = tensors["w"]
    changed = bytearray(data)
    changed[4 * (7 * 64 + 9) + 3] ^= 0x40
    return {**tensors, "w": (dtype, shape, bytes(changed))}


def _file_changed() -> Command:
    path = write_safetensors(Path("model.safetensors"), ONE)
    run(("manifest", path.name, "-o", "model.weightguard.json", "--file-digests"))
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].rstrip()[:-1] + b',"__metadata__":{"format":"tf"}}'
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    return ("verify", path.name, "model.weightguard.json")


def _alias_changed() -> Command:
    tied = torch_zip.table(w=torch_zip.tensor(), tied=torch_zip.tensor())
    _audit(torch_zip.archive(torch_zip.pickled(tied)), "model.pt")
    run(("manifest", "model.pt", "-o", "model.weightguard.json"))
    _audit(torch_zip.archive(torch_zip.pickled(torch_zip.table(w=torch_zip.tensor()))), "model.pt")
    return ("verify", "model.pt", "model.weightguard.json")


def _gated(policy: str) -> Command:
    folder = Path("model")
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", {**ONE, **TWO})
    Path("weightguard.toml").write_text(policy)
    return ("gate", "model", "--policy", "weightguard.toml")


def _uncalibrated() -> Command:
    command = _gated('manifest.path = "m.json"\ncalibration.required = true')
    run(("manifest", "model", "-o", "m.json"))
    return command


def _trusted() -> Command:
    command = (*_gated(""), "--trust-cache")
    os.environ["XDG_CACHE_HOME"] = str(Path("cache").resolve())
    with mock.patch.object(trust, "SETTLED_NS", 0):
        run(command)
    return command


def _drifted(change: Callable[[Tensors], Tensors], policy: str = "") -> Command:
    command = _gated(f'drift.base = "base.safetensors"\ndrift.max-change = 0.1\n{policy}')
    tensors = {**ONE, **TWO}
    write_safetensors(Path("base.safetensors"), tensors)
    write_safetensors(Path("model/model.safetensors"), change(tensors))
    return command


def _moved(
    tensor: tuple[str, tuple[int, ...], bytes], factor: float
) -> tuple[str, tuple[int, ...], bytes]:
    dtype, shape, data = tensor
    values = np.frombuffer(data, "<f4")
    noise = np.random.default_rng(3).choice(np.float32([-1, 1]), len(values))
    moved = values + noise * np.float32(factor * np.sqrt(np.mean(values**2)))
    return dtype, shape, moved.astype("<f4").tobytes()


def _old_gguf() -> Command:
    gguf = gguf_bytes(version=1)
    return _audit(gguf, "model.gguf")


def _signed(damage: Callable[[Path], object], *, key: int = 1) -> Command:
    """Sign a folder with a fixed key, damage it, and return the command that verifies it."""
    Path("model").mkdir()
    write_safetensors(Path("model/model.safetensors"), ONE)
    Path("model/config.json").write_text("{}")
    for name, secret in (("mine", 1), ("other", 2)):
        made = ec.derive_private_key(secret, ec.SECP256R1())
        private = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with open(os.open(f"{name}.pem", os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:  # noqa: PTH123
            file.write(private)
        public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        Path(f"{name}.pub").write_bytes(public)
    run(("sign", "model", "--key", f"{'mine' if key == 1 else 'other'}.pem"))
    damage(Path("model"))
    return ("verify", "model", "model/model.weightguard.json", "--public-key", "mine.pub")


def _forged(folder: Path) -> None:
    """Change the list that the signature is over, and leave the signature as it is."""
    path = folder / "model.sig"
    bundle = json.loads(path.read_text())
    payload = bytearray(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    at = payload.index(b'"digest"') + 20
    digit = next(n for n in range(at, len(payload)) if payload[n : n + 1] in b"12345678")
    payload[digit] ^= 1
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(bytes(payload)).decode()
    path.write_text(json.dumps(bundle))


def _outside() -> Command:
    command = _signed(lambda _: None)
    for path in Path("model").glob("model*.weightguard.json"):
        shutil.copy(path, "copy.weightguard.json")
    for path in Path("model").glob("*.sidecar"):
        shutil.copy(path, path.name)
    return ("verify", "model", "copy.weightguard.json", *command[3:])


EXAMPLES: dict[str, Callable[[], Command]] = {
    "WG101": lambda: _audit(b"<!DOCTYPE html><title>404 Not Found</title>"),
    "WG102": lambda: _audit(safetensors_bytes(ONE)[:-1000]),
    "WG103": lambda: _header('{"w": nonsense}'),
    "WG104": lambda: _header(f'{{"w":{_entry(0, 16)},"w":{_entry(16, 32)}}}', bytes(32)),
    "WG105": lambda: _header(f'{{"v":{_entry(0, 16)},"w":{_entry(24, 40)}}}', bytes(40)),
    "WG106": lambda: _audit(gguf_bytes([Info(offset=8)], bytes(64)), "model.gguf"),
    "WG107": lambda: _header(f'{{"w":{_entry(0, 12)}}}', bytes(12)),
    "WG108": lambda: _header(f'{{"w":{_entry(0, 16, dtype="F99")}}}', bytes(16)),
    "WG109": lambda: _index(_map_to("model-00001-of-00002.safetensors")),
    "WG110": lambda: _index(_map_to("../other/weights.safetensors")),
    "WG111": _fifo,
    "WG112": _unsafe_pickle,
    "WG113": _record_checksum,
    "WG114": _legacy,
    "WG115": lambda: _audit(safetensors_bytes({"w\x1b[2J": ONE["w"]})),
    "WG116": lambda: _audit(gguf_bytes(tensors=1 << 34), "model.gguf"),
    "WG117": _unsafe_zip,
    "WG118": _blob_digest,
    "WG119": _old_gguf,
    "WG120": lambda: _config('["no", "object"]'),
    "WG121": lambda: _index(lambda f: [write_safetensors(f / "extra.safetensors", TWO)].clear()),
    "WG122": lambda: ("audit", "missing.safetensors"),
    "WG123": _interrupted,
    "WG201": lambda: _with((3, 5), np.nan),
    "WG202": lambda: _with((3, 5), np.inf),
    "WG203": lambda: _values(np.zeros((64, 64))),
    "WG204": lambda: _values(np.full((64, 64), 0.5)),
    "WG205": lambda: _with((7,), 0.0),
    "WG206": lambda: _values(_weights() * 1e-38),
    "WG207": lambda: _with((3, 5), 3e38),
    "WG208": _config_mismatch,
    "WG209": lambda: _audit(gguf_bytes([Info(ne=(32, 2), kind=20)], bytes(36)), "model.gguf"),
    "WG210": lambda: _audit(safetensors_bytes({})),
    "WG301": lambda: _super_weight(0),
    "WG302": lambda: _super_weight(0xC0BC),
    "WG303": lambda: _super_weight(0x4040),
    "WG304": _scale_swallowed,
    "WG305": _changed_super_weight,
    "WG306": _changed_channel,
    "WG401": lambda: _verified(_flipped),
    "WG402": lambda: _verified(lambda t: {"w": t["w"]}),
    "WG403": lambda: _verified(lambda t: {**t, "u": random_tensor("F32", (9,), 9)}),
    "WG404": lambda: _verified(lambda t: {**t, "v": ("F32", (64, 32), t["v"][2])}),
    "WG405": lambda: _verified(lambda t: {**t, "v": ("I32", (32, 64), t["v"][2])}),
    "WG406": lambda: _verified(lambda t: {"w": t["w"], "renamed": t["v"]}),
    "WG407": _file_changed,
    "WG408": _alias_changed,
    "WG501": lambda: _signed(lambda folder: (folder / "model.sig").unlink()),
    "WG502": lambda: _signed(lambda folder: (folder / "model.sig").write_text("{}")),
    "WG503": lambda: _signed(_forged),
    "WG504": lambda: _signed(lambda _: None, key=2),
    "WG505": _outside,
    "WG506": lambda: _signed(lambda folder: (folder / "config.json").write_text("[]")),
    "WG507": lambda: _signed(lambda folder: (folder / "config.json").unlink()),
    "WG508": lambda: _signed(lambda folder: (folder / "modeling.py").write_text("")),
    "WG511": lambda: _gated('manifest.path = "{name}.weightguard.json"'),
    "WG512": _uncalibrated,
    "WG513": lambda: _gated('allow.formats = ["gguf"]'),
    "WG514": lambda: _gated('allow.dtypes = ["BF16"]'),
    "WG515": lambda: _gated('limits.total-size = "10 kB"'),
    "WG516": lambda: _gated('super-weights.lineage = "HuggingFaceTB/SmolLM2-1.7B"'),
    "WG519": _trusted,
    "WG601": lambda: _drifted(lambda t: {**t, "v": _moved(t["v"], 0.2)}),
    "WG602": lambda: _drifted(lambda t: {**t, "v": random_tensor("F32", (32, 64), 9)}),
    "WG603": lambda: _drifted(lambda t: {**t, "v": _moved(t["v"], 0.01)}, "drift.changed = []"),
    "WG604": lambda: _drifted(lambda t: {**t, "u": random_tensor("F32", (9,), 9)}),
    "WG605": lambda: _drifted(lambda t: {"w": t["w"]}),
}


def regenerate() -> None:
    """Write every page's example again, and a page to fill in for a rule that has none."""
    PAGES.mkdir(exist_ok=True)
    for code, rule in RULES.items():
        path = PAGES / f"{code}.md"
        text = path.read_text("utf-8") if path.exists() else TEMPLATE
        begun = heading(rule) + text[text.index("\n## ") :]
        path.write_text(with_example(begun, example(code)), "utf-8")


if __name__ == "__main__":
    regenerate()
