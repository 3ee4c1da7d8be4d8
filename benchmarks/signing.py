"""What signing and verifying cost beside model-signing, on a sharded bf16 checkpoint, warm cache.

    python benchmarks/signing.py [--gigabytes 2.4] [--rounds 5] [--folder DIR]

model-signing hashes files. weightguard also attests the tensors, or compares them and locates
what changed. Contestants run in forked processes, rounds interleaved, medians.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from audit import Cost, make_checkpoint, measure, print_table, read_mapping
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from model_signing import hashing, signing, verifying

import weightguard
from weightguard.signing import PrivateKey, PublicKey, sign, verify_signature, verify_signed


def write_keys(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def contestants(model: Path, private: Path, public: Path) -> dict[str, Callable[[], object]]:
    manifest, signature = model / "model.weightguard.json", model / "model.sig"
    files = hashing.Config().set_ignored_paths(paths=["model.sig"])
    trusted = PublicKey(public)

    def sound(findings: tuple[weightguard.Finding, ...]) -> None:
        assert not findings, findings

    def their_signing() -> None:
        config = signing.Config().use_elliptic_key_signer(private_key=private)
        config.set_hashing_config(files).sign(model, signature)

    return {
        "read the mapping": lambda: read_mapping(model),
        "weightguard manifest": lambda: weightguard.fingerprint(model).close(),
        "weightguard sign (manifest is there)": lambda: sign(model, PrivateKey(private)),
        "model-signing sign": their_signing,
        "weightguard verify": lambda: sound(weightguard.verify(model, manifest).findings),
        "weightguard verify_signature": lambda: sound(verify_signature(model, trusted)),
        "weightguard verify --public-key": lambda: sound(
            verify_signed(model, manifest, trusted).findings
        ),
        "model-signing verify": lambda: (
            verifying.Config()
            .use_elliptic_key_verifier(public_key=public)
            .set_hashing_config(files)
            .verify(model, signature)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        model = make_checkpoint(folder, arguments.gigabytes)
        private, public = write_keys(folder)
        sign(model, PrivateKey(private))
        nbytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        running = contestants(model, private, public)
        costs: dict[str, list[Cost]] = {label: [] for label in running}
        for _ in range(arguments.rounds):
            for label, contestant in running.items():
                costs[label].append(measure(contestant))
    print_table(costs, nbytes)


if __name__ == "__main__":
    main()
