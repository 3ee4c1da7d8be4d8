"""Key and certificate files: read once, bounded, and checked before the library sees them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.names import shown
from weightguard.errors import CheckpointError
from weightguard.signing.parties import KeyFileError, PrivateKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )
    from cryptography.x509 import Certificate

MAX_PEM_BYTES = 4 << 20
"""A system's whole bundle of roots has 0.3 MB."""

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_WANTED = (
    "Give an elliptic-curve key on P-256, P-384 or P-521, such as "
    "`openssl ecparam -name prime256v1 -genkey -noout` makes"
)

_PEM_CERTIFICATE = (
    "Give one that begins with BEGIN CERTIFICATE; `openssl x509 -inform DER -in C -out C.pem` "
    "makes it from a binary one"
)


def read_pem(path: Path, what: str) -> bytes:
    """Return the bytes of a file that the user named; KeyFileError where it cannot be read."""
    try:
        file = CheckpointFile(path.resolve(), str(path))
    except (OSError, RuntimeError, ValueError, CheckpointError) as error:
        raise KeyFileError(f"cannot read {what}: {error}. Check the path") from error
    try:
        return file.read(0, file.size, limit=MAX_PEM_BYTES)
    except CheckpointError as error:
        raise KeyFileError(f"cannot read {what}: {error}. Check that this is its file") from error
    finally:
        file.close()


def public_key(path: Path) -> EllipticCurvePublicKey:
    """Return the public key in a PEM file; KeyFileError where it is none to verify with."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read_pem(path, "the public key")
    if b"PRIVATE KEY-----" in data:
        raise KeyFileError(
            f"{shown(str(path))} is a private key, and verifying takes the public one. "
            "`openssl pkey -in KEY -pubout` derives it"
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{shown(str(path))} is no PEM public key. {_WANTED}") from error
    _require_curve(key, path)
    return key  # type: ignore[return-value]


def private_key(key: PrivateKey) -> EllipticCurvePrivateKey:
    """Return the private key in a PEM file, decrypted in memory.

    Raises KeyFileError where it is unreadable, of another kind or its password is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data, name = read_pem(key.path, "the private key"), shown(str(key.path))
    if b"PUBLIC KEY-----" in data and b"PRIVATE KEY-----" not in data:
        raise KeyFileError(
            f"{name} is a public key, and signing takes the private one. Give the key that it was "
            "derived from"
        )
    password = None if key.password is None else key.password.encode()
    try:
        loaded = load_pem_private_key(data, password)
    except TypeError as error:
        if password is None:
            remedy = f"the private key {name} is encrypted: name a variable with --password-env"
            raise KeyFileError(remedy) from error
        raise KeyFileError(
            f"the private key {name} is not encrypted, but a password was given. Leave out "
            "--password-env"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if b"ENCRYPTED" in data:
            raise KeyFileError(
                f"the private key {name} cannot be decrypted: the password is wrong, "
                "or the file is damaged. Check the variable of --password-env, or take the key "
                "from its backup"
            ) from error
        raise KeyFileError(f"{name} is no PEM private key. {_WANTED}") from error
    _require_curve(loaded, key.path)
    return loaded  # type: ignore[return-value]


def is_exposed(path: Path) -> bool:
    """Return whether others than its owner can read or change a private key's file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise KeyFileError(
            f"cannot read {str(path)!r}: {error.strerror}. Check the path"
        ) from error
    return stat.S_ISREG(mode) and bool(mode & (stat.S_IRWXG | stat.S_IRWXO))


def is_encrypted(path: Path) -> bool:
    """Return whether a private key's file needs a password."""
    return b"ENCRYPTED" in read_pem(path, "the private key")


def certificates(paths: Iterable[Path]) -> bytes:
    """Return PEM certificates joined; KeyFileError where a file holds none."""
    from cryptography.x509 import load_pem_x509_certificates

    pieces = []
    for path in paths:
        data = read_pem(path, "the certificate")
        try:
            load_pem_x509_certificates(data)
        except ValueError as error:
            raise KeyFileError(
                f"{shown(str(path))} holds no PEM certificate. {_PEM_CERTIFICATE}"
            ) from error
        pieces.append(data.rstrip() + b"\n")
    return b"".join(pieces)


def certified_key(path: Path) -> object:
    """Return the public key of a file's first certificate, the signer's.

    Raises KeyFileError where verifiers would refuse what its key signs: they ask for the key
    usage digitalSignature or the extended key usage codeSigning.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509 import load_pem_x509_certificate

    data, name = certificates([path]), shown(str(path))
    try:
        certificate = load_pem_x509_certificate(data)
        usable = _may_sign(certificate)
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(
            f"the certificate {name} cannot be used: {error}. Have it issued anew"
        ) from error
    if not usable:
        raise KeyFileError(
            f"the certificate {name} is not for signing, so nobody would accept the signature: "
            "have one issued with the key usage digitalSignature or the extended key usage "
            "codeSigning"
        )
    return key


def _may_sign(certificate: Certificate) -> bool:
    from cryptography.x509 import ExtendedKeyUsage, KeyUsage
    from cryptography.x509.oid import ExtendedKeyUsageOID

    for extension in certificate.extensions:
        match extension.value:
            case KeyUsage(digital_signature=True):
                return True
            case ExtendedKeyUsage() as usages if ExtendedKeyUsageOID.CODE_SIGNING in usages:
                return True
    return False


@contextlib.contextmanager
def in_memory(data: bytes = b"") -> Iterator[Path]:
    """Yield a path to an unnamed file in memory, for a library that takes paths alone.

    What was checked is what the library reads, and a decrypted key never reaches a disk.
    """
    descriptor = os.memfd_create("weightguard", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _require_curve(key: object, path: Path) -> None:
    curve = getattr(key, "curve", None)
    if curve is None:
        kind = type(key).__name__.lstrip("_").removesuffix("PublicKey").removesuffix("PrivateKey")
        raise KeyFileError(f"{shown(str(path))} is a key of another kind ({kind}). {_WANTED}")
    if curve.name not in _CURVES:
        raise KeyFileError(f"{shown(str(path))} is on the curve {curve.name}. {_WANTED}")
