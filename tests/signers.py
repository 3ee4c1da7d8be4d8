"""Keys, certificates and the real model_signing program, for tests of signatures."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

_START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def write_key(
    folder: Path, name: str, curve: ec.EllipticCurve | None = None, password: str | None = None
) -> tuple[Path, Path]:
    """Write NAME.pem, readable by its owner only, and NAME.pub; return both paths."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    _write_private(private, key, password)
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey, password: str | None) -> None:
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    path.chmod(0o600)


LeafFor = Literal["signing", "code", "web"]


def write_authority(
    folder: Path,
    name: str,
    leaf_for: LeafFor = "signing",
    roles: tuple[str, ...] = ("root", "intermediate", "leaf"),
) -> dict[str, Path]:
    """Write certificates, each signed by the one before, and the leaf's key; return their paths."""
    paths: dict[str, Path] = {}
    issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None
    for role in roles:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name} {role}")])
        signer_name, signer_key = issuer or (subject, key)
        is_ca = role != "leaf"
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(signer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_START)
            .not_valid_after(_START + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        )
        if is_ca or leaf_for != "code":
            builder = builder.add_extension(_usage(is_ca, leaf_for == "signing"), critical=True)
        else:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
            builder = builder.add_extension(usage, critical=False)
        certificate = builder.sign(signer_key, hashes.SHA256())
        paths[role] = folder / f"{name}-{role}.crt"
        paths[role].write_bytes(certificate.public_bytes(Encoding.PEM))
        issuer = (subject, key)
        if role == "leaf":
            paths["key"] = folder / f"{name}-leaf.pem"
            _write_private(paths["key"], key, None)
    return paths


def _usage(is_ca: bool, may_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca and may_sign,
        content_commitment=False,
        key_encipherment=not may_sign,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the real program."""
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
